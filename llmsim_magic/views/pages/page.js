// Opens folded layers of a table one by one, and follows the table of contents.

function depthOf(row) {
  return Number(row.dataset.depth ?? 0);
}

// The rows below the head of a block, which are those of one layer.
function inside(head) {
  const rows = [];
  for (let row = head.nextElementSibling; row; row = row.nextElementSibling) {
    if (depthOf(row) <= depthOf(head)) break;
    rows.push(row);
  }
  return rows;
}

function blockOf(head) {
  return `${head.dataset.stack}/${head.dataset.layers}`;
}

function copied(row, owner) {
  const copy = row.cloneNode(true);
  copy.dataset.owner = owner;
  copy.hidden = true;
  return copy;
}

function openBlock(head) {
  const {stack, layers, depth} = head.dataset;
  const rows = inside(head);
  const made = [];
  for (const index of layers.split(",")) {
    const name = stack ? `${stack}.${index}` : index;
    const owner = `${depth}/${name}`;
    const layer = head.cloneNode(true);
    layer.dataset.layer = owner;
    layer.querySelector(".path span").textContent = name;
    const button = layer.querySelector(".fold");
    button.textContent = "open";
    button.setAttribute("aria-expanded", "false");
    made.push(layer, ...rows.map((row) => copied(row, owner)));
  }
  for (const row of rows) row.hidden = true;
  (rows.at(-1) ?? head).after(...made);
  for (const row of made) row.dataset.block = blockOf(head);
}

function closeBlock(head) {
  for (const row of head.parentElement.querySelectorAll("tr")) {
    if (row.dataset.block === blockOf(head)) row.remove();
  }
  for (const row of inside(head)) row.hidden = false;
}

function toggle(button) {
  const head = button.closest("tr");
  const isOpen = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!isOpen));
  if (head.dataset.layer === undefined) {
    (isOpen ? closeBlock : openBlock)(head);
    return;
  }
  button.textContent = isOpen ? "open" : "close";
  for (const row of head.parentElement.querySelectorAll("tr")) {
    if (row.dataset.owner === head.dataset.layer) row.hidden = isOpen;
  }
}

function answerClicks(root) {
  for (const page of root.querySelectorAll(".llmsim:not([data-ready])")) {
    page.dataset.ready = "";
    page.addEventListener("click", (event) => {
      const button = event.target.closest(".fold");
      if (button) toggle(button);
      const link = event.target.closest("nav a");
      if (link) {
        event.preventDefault();
        const name = link.getAttribute("href").slice(1);
        page.querySelector(`[id="${name}"]`)?.scrollIntoView();
      }
    });
  }
}
