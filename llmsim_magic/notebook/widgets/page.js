// A page of a report; its folded layers open, and its table of contents scrolls.
const render = ({ model, el }) => {
  const show = () => {
    el.innerHTML = model.get("content");
    answerClicks(el);
  };
  model.on("change:content", show);
  show();
};

export default { render };
