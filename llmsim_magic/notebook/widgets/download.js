// The button asks the kernel for a file; what it sends is saved by the browser.
const render = ({ model, el }) => {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-button widget-button";
  const show = () => {
    button.textContent = model.get("label");
    button.disabled = model.get("is_disabled");
  };
  const save = (message, buffers) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(buffers, { type: "application/octet-stream" }));
    link.download = message.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  };
  button.addEventListener("click", () => model.send({}));
  model.on("msg:custom", save);
  model.on("change:label", show);
  model.on("change:is_disabled", show);
  show();
  el.append(button);
  return () => model.off("msg:custom", save);
};

export default { render };
