
// A view: the picture comes to life once it is seen, for only then its parts have sizes.
const render = ({ model, el }) => {
  let width = 0;
  const draw = () => {
    if (!el.clientWidth || el.clientWidth === width) return;
    if (!width) {
      el.innerHTML = model.get("picture");
      const box = el.querySelector(".llmsim-graph");
      if (box && model.get("window")) box.dataset.window = model.get("window");
      makeInteractive(el);
    } else drawing()?.natural();
    width = el.clientWidth;
    choose();
  };
  const drawing = () => el.querySelector(".llmsim-graph")?.drawing;
  const choose = () => {
    drawing()?.choose(model.get("chosen"));
    drawing()?.reveal(model.get("chosen"));
  };
  const anew = () => {
    width = 0;
    draw();
  };
  el.addEventListener("llmsim-node", (event) => {
    model.set("chosen", event.detail);
    model.save_changes();
  });
  model.on("change:picture", anew);
  model.on("change:chosen", choose);
  const seen = new ResizeObserver(draw);
  seen.observe(el);
  return () => seen.disconnect();
};

export default { render };
