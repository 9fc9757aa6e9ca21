
// A view: the picture comes to life once it is seen, for only then its parts have sizes.
const render = ({ model, el }) => {
  const draw = () => {
    if (!el.clientWidth || el.dataset.drawn === "yes") return;
    el.dataset.drawn = "yes";
    el.innerHTML = model.get("picture");
    enliven(el);
    choose();
  };
  const drawing = () => el.querySelector(".llmsim-graph")?.drawing;
  const choose = () => {
    drawing()?.choose(model.get("chosen"));
    drawing()?.reveal(model.get("chosen"));
  };
  const anew = () => {
    el.dataset.drawn = "";
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
