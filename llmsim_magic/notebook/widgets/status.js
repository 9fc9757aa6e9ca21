// The two live regions stand from the start: a reader tells what changes in them.
const render = ({ model, el }) => {
  const add = (parent, name, attributes = {}) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
    return made;
  };
  const bar = add(el, "progress", { "aria-label": "progress" });
  const said = add(el, "span", { role: "status", class: "llmsim-said" });
  const alert = add(el, "div", { role: "alert", class: "llmsim-error" });
  const more = add(el, "details", { class: "llmsim-details" });
  add(more, "summary").textContent = "details";
  const details = add(more, "pre", { tabindex: "0" });
  add(el, "style").textContent = `.${model.get("twin")} {display:none}`;

  const silence = { text: "" };
  const show = () => {
    const fraction = model.get("fraction");
    bar.hidden = !model.get("is_busy");
    if (fraction < 0) bar.removeAttribute("value");
    else bar.value = fraction;
    said.textContent = silence.text || model.get("message");
    alert.textContent = model.get("error");
    alert.hidden = !model.get("error");
    details.textContent = model.get("details");
    more.hidden = !model.get("details");
  };
  for (const name of ["message", "is_busy", "fraction", "error", "details"]) model.on(`change:${name}`, show);
  show();
  const whenDone = [nameSliders(el), tellOfSilence(model, el, silence, show)];
  return () => whenDone.forEach((act) => act());
};

// While a cell runs a kernel may hear no widget: say so until it answers a question, whatever
// it tells meanwhile of work that it began before.
const PATIENCE_MS = 700;
const tellOfSilence = (model, el, silence, show) => {
  let timer;
  const tell = (text) => {
    silence.text = text;
    show();
  };
  const ask = (event) => {
    if (!el.closest(".llmsim-panel")?.contains(event.target)) return;
    clearTimeout(timer);
    timer = setTimeout(tell, PATIENCE_MS, "a cell is running: the panel answers when it is done");
    try {
      model.send("are you there?");
    } catch {
      clearTimeout(timer);
      tell("the kernel was restarted: run this cell again");
    }
  };
  const heard = () => {
    clearTimeout(timer);
    tell("");
  };
  for (const name of ["change", "click"]) document.addEventListener(name, ask);
  model.on("msg:custom", heard);
  return () => {
    clearTimeout(timer);
    for (const name of ["change", "click"]) document.removeEventListener(name, ask);
    model.off("msg:custom", heard);
  };
};

// ipywidgets leaves the handles of its sliders without a name, and says the place, not the value.
const nameSliders = (el) => {
  const name = () => {
    for (const slider of el.closest(".llmsim-panel")?.querySelectorAll(".widget-hslider") ?? []) {
      const handle = slider.querySelector("[role=slider]"), value = slider.querySelector(".widget-readout");
      handle?.setAttribute("aria-label", slider.querySelector("label").textContent);
      handle?.setAttribute("aria-valuetext", value.textContent);
    }
  };
  const changed = new MutationObserver(name);
  const found = new ResizeObserver(() => {
    const panel = el.closest(".llmsim-panel");
    if (panel) changed.observe(panel, { childList: true, characterData: true, subtree: true });
    name();
  });
  found.observe(el);
  return () => {
    found.disconnect();
    changed.disconnect();
  };
};

export default { render };
