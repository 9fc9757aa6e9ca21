// A page of a report; its folded layers open, and its table of contents scrolls.
const render = ({ model, el }) => {
  const show = () => {
    el.innerHTML = model.get("value");
    answerClicks(el);
  };
  model.on("change:value", show);
  show();
};

export default { render };
