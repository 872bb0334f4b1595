// Shows props.value, a list of cards as HTML, and reports which of their buttons is pressed.
// A card that stays in the list stays as it is: its videos play on, and what is typed into it is kept.
const list = element.querySelector(".cards");

function made(html) {
  const card = document.createElement("div");
  card.innerHTML = html;
  card.html = html;
  return card;
}

function show() {
  const wanted = new Set(props.value);
  for (const card of [...list.children]) if (!wanted.has(card.html)) card.remove();
  const kept = new Map([...list.children].map((card) => [card.html, card]));
  let next = list.firstElementChild;
  for (const html of props.value) {
    const card = kept.get(html) ?? made(html);
    if (card === next) next = next.nextElementSibling;
    else list.insertBefore(card, next);
  }
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (button) trigger("click", { action: button.dataset.action, of: button.dataset.of, prompt: "" });
});
element.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  trigger("click", { action: form.dataset.action, of: form.dataset.of, prompt: form.elements.prompt.value });
});
watch("value", show);
show();
