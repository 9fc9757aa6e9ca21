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

// Of the head of an open block, the rows that were made for its layers; of a layer, its own.
const opened = new WeakMap();
const contents = new WeakMap();

function closeBlocksAmong(rows) {
  for (const row of rows) if (opened.has(row)) closeBlock(row);
}

function copied(row, owner) {
  const copy = row.cloneNode(true);
  copy.dataset.owner = owner;
  copy.hidden = true;
  return copy;
}

function layerHead(head, name) {
  const layer = head.cloneNode(true);
  layer.dataset.layer = name;
  const path = layer.querySelector(".path");
  path.title = name;
  path.querySelector("span").textContent = name;
  const button = path.querySelector(".fold");
  button.textContent = "open";
  button.setAttribute("aria-expanded", "false");
  for (const cell of layer.querySelectorAll("[data-of-layer]")) {
    cell.textContent = cell.dataset.ofLayer;
    cell.removeAttribute("title");
  }
  return layer;
}

function openBlock(head) {
  closeBlocksAmong(inside(head));
  const {stack, layers} = head.dataset;
  const rows = inside(head);
  const made = [];
  for (const index of layers.split(",")) {
    const name = stack ? `${stack}.${index}` : index;
    const layer = layerHead(head, name);
    const copies = rows.map((row) => copied(row, name));
    contents.set(layer, copies);
    made.push(layer, ...copies);
  }
  for (const row of rows) row.hidden = true;
  (rows.at(-1) ?? head).after(...made);
  opened.set(head, made);
}

function closeBlock(head) {
  const made = opened.get(head);
  closeBlocksAmong(made);
  for (const row of made) row.remove();
  opened.delete(head);
  for (const row of inside(head)) row.hidden = false;
  head.querySelector(".fold").setAttribute("aria-expanded", "false");
}

function toggle(button) {
  const head = button.closest("tr");
  const isOpen = button.getAttribute("aria-expanded") === "true";
  const rows = contents.get(head);
  if (rows === undefined) {
    (isOpen ? closeBlock : openBlock)(head);
  } else {
    if (isOpen) closeBlocksAmong(rows);
    button.textContent = isOpen ? "open" : "close";
    for (const row of rows) row.hidden = isOpen;
  }
  button.setAttribute("aria-expanded", String(!isOpen));
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
