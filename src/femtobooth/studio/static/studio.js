// What every page does: take photos that are dropped anywhere, send a form once files are chosen, ask before deleting.
const root = document.documentElement;

function target() {
  return document.querySelector("form.more-photos") || document.getElementById("begin");
}

function hasFiles(event) {
  return event.dataTransfer && [...event.dataTransfer.types].includes("Files") && !document.querySelector("[data-own-drop]");
}

let inside = 0;
addEventListener("dragenter", (event) => { if (hasFiles(event)) { inside += 1; root.classList.add("over"); } });
addEventListener("dragleave", (event) => { if (hasFiles(event) && (inside -= 1) <= 0) { inside = 0; root.classList.remove("over"); } });
addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  inside = 0;
  root.classList.remove("over");
  send(event.dataTransfer.files);
});

// Photos are sent by a form, so that the answer is a page: that of the draft, or what went wrong.
function send(files) {
  if (!files.length) return;
  let form = target();
  if (!form) {
    form = document.createElement("form");
    Object.assign(form, { method: "post", action: "/new", enctype: "multipart/form-data", hidden: true });
    const input = document.createElement("input");
    Object.assign(input, { type: "file", name: "photos", multiple: true });
    form.append(input);
    document.body.append(form);
  }
  form.querySelector("input[type=file]").files = files;
  busy(form);
  form.requestSubmit();
}

function busy(form) {
  form.classList.add("sending");
  const told = form.querySelector("h2, p");
  if (told) told.textContent = "Sending the photos…";
}

document.addEventListener("change", (event) => {
  const input = event.target;
  if (input.matches(".drop input[type=file]") && input.files.length) { busy(input.form); input.form.requestSubmit(); }
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.ask && !confirm(form.dataset.ask)) { event.preventDefault(); event.stopPropagation(); return; }
  if (form.method === "post" && !form.hasAttribute("hx-post") && !form.hasAttribute("data-own")) {
    if (form.dataset.sent) { event.preventDefault(); return; }
    form.dataset.sent = "1";
  }
}, true);
addEventListener("pageshow", () => document.querySelectorAll("[data-sent]").forEach((form) => delete form.dataset.sent));

// A suggestion fills the field that it is for.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-fill]");
  if (!button) return;
  const field = document.getElementById(button.dataset.fill);
  field.value = button.textContent;
  field.dispatchEvent(new Event("change", { bubbles: true }));
});

// A short message at the foot of the page.
export function say(text) {
  const note = document.createElement("p");
  note.className = "toast";
  note.textContent = text;
  document.getElementById("told").replaceChildren(note);
  setTimeout(() => note.remove(), 5000);
}
