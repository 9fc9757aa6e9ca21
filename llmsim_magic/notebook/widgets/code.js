// A text with a button that copies it; where the browser forbids that, the text is selected.
const render = ({ model, el }) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-button widget-button";
  const text = document.createElement("pre");
  text.tabIndex = 0;
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  const show = () => {
    button.textContent = `copy ${model.get("label")}`;
    text.setAttribute("aria-label", model.get("label"));
    text.textContent = model.get("text");
    said.textContent = "";
  };
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(model.get("text"));
      said.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(text);
      said.textContent = "selected: copy it with your keyboard";
    }
  });
  model.on("change:text", show);
  show();
  el.classList.add("llmsim-code");
  el.append(text, button, said);
};

export default { render };
