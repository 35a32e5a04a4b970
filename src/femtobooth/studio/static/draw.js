// The desk where pictures are asked for, and a closer look at each of them.
import { Brush } from "./brush.js";
import { say } from "./studio.js";

const by = (id) => document.getElementById(id);
const form = by("draw"), start = by("start"), over = by("over"), picture = over.querySelector("img");

by("other")?.addEventListener("change", (event) => { location.href = event.target.value; });
by("dice").addEventListener("click", () => { by("seed").value = Math.floor(Math.random() * 1e6); });
document.querySelectorAll("[data-idea]").forEach((one) => one.addEventListener("click", () => {
  by("prompt").value = one.dataset.idea;
  by("prompt").focus();
}));
form.querySelectorAll("[name^=strength-]").forEach((one) => one.addEventListener("input", () => {
  one.nextElementSibling.textContent = Number(one.value) ? one.value : "off";
}));

// A picture to begin from, and paint over it

let brush = null;
function begin() {
  const [file] = start.files;
  over.hidden = !file;
  if (!file) return;
  picture.onload = () => {
    if (brush) { brush.fit(); brush.clear(); } else brush = new Brush(by("mask"), () => Number(by("brush").value) / 2);
  };
  picture.src = URL.createObjectURL(file);
}
start.addEventListener("change", begin);
by("erase").addEventListener("click", (event) => {
  if (!brush) return;
  brush.erasing = !brush.erasing;
  event.currentTarget.setAttribute("aria-pressed", String(brush.erasing));
});
by("clear").addEventListener("click", () => brush?.clear());
by("no-start").addEventListener("click", () => { start.value = ""; begin(); });

function put(input, blob, name) {
  const held = new DataTransfer();
  held.items.add(new File([blob], name, { type: blob.type }));
  input.files = held.files;
}

// Asking: the page stays, the gallery shows what comes

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button.main");
  button.disabled = true;
  coming(true);
  try {
    const asked = new FormData(form);
    if (start.files.length && brush?.painted) {
      asked.set("mask_file", await brush.blob(picture.naturalWidth, picture.naturalHeight), "mask.png");
    }
    const answer = await fetch(form.action, { method: "POST", body: asked });
    if (answer.ok) {
      await refresh();
      if (matchMedia("(max-width: 860px)").matches) by("gallery").scrollIntoView({ behavior: "smooth" });
      document.querySelectorAll("#draw .wrong").forEach((one) => one.remove());
    } else {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      mend(page);
    }
  } catch {
    say("The studio does not answer. Is it still running?");
  } finally {
    button.disabled = false;
    coming(false);
  }
});

// What is being drawn, also for a page that was loaded meanwhile

let watch = null;
function coming(begun) {
  clearInterval(watch);
  watch = null;
  by("coming").hidden = !begun;
  if (!begun) return;
  by("coming-text").textContent = "Getting ready to draw";
  by("coming-bar").removeAttribute("value");
  if (matchMedia("(max-width: 860px)").matches) by("coming").scrollIntoView({ behavior: "smooth", block: "center" });
  watch = setInterval(async () => {
    const now = await progress();
    if (!now) return;
    if (now.active && now.total) {
      by("coming-text").textContent = `Drawing: ${Math.floor(now.done)} of ${now.total}`;
      by("coming-bar").max = now.total;
      by("coming-bar").value = now.done;
    }
    if (!now.active && !now.waiting && !form.querySelector("button.main").disabled) { coming(false); refresh(); }
  }, 500);
}

async function progress() {
  try {
    const answer = await fetch("/api/v1/generate/progress");
    return answer.ok ? await answer.json() : null;
  } catch { return null; }
}
progress().then((now) => { if (now && (now.active || now.waiting)) coming(true); });
by("coming-stop").addEventListener("click", () => fetch("/api/v1/generate/stop", { method: "POST" }));

function mend(page) {
  document.querySelectorAll("#draw .wrong").forEach((one) => one.remove());
  const found = [...page.querySelectorAll("#draw .wrong")];
  found.forEach((one) => {
    const field = by(one.id.replace(/-wrong$/, ""));
    if (!field) return;
    field.closest("details")?.setAttribute("open", "");
    (field.closest(".with") || field).after(one);
  });
  const told = page.querySelector(".callout.bad");
  if (told) say(told.textContent);
  if (found.length) by(found[0].id.replace(/-wrong$/, ""))?.focus();
  else if (!told) say("That did not work.");
}

async function refresh() {
  const shown = by("gallery");
  await htmx.ajax("GET", shown.getAttribute("hx-get"), { target: shown, swap: "outerHTML" });
}

// A closer look

const look = by("look");
let shown = null;
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-shot]");
  if (!button) return;
  shown = button;
  const image = button.querySelector("img");
  by("look-picture").src = image.src;
  by("look-picture").alt = image.alt;
  by("look-title").textContent = button.dataset.prompt || button.dataset.name;
  const facts = { seed: button.dataset.seed, ...JSON.parse(button.dataset.facts) };
  by("look-facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
  by("look-save").href = image.src;
  by("look-save").download = button.dataset.name;
  look.showModal();
});
by("look-close").addEventListener("click", () => look.close());
look.addEventListener("click", (event) => { if (event.target === look) look.close(); });
by("look-same").addEventListener("click", () => {
  const settings = JSON.parse(shown.dataset.settings);
  by("seed").value = shown.dataset.seed;
  by("count").value = 1;
  for (const [name, value] of Object.entries(settings)) {
    const field = form.elements.namedItem(name) || form.elements.namedItem(`sampling.${name}`);
    if (field) field.value = value;
  }
  look.close();
  by("prompt").value = shown.dataset.prompt;
  by("prompt").focus();
  by("prompt").select();
});
by("look-start").addEventListener("click", async () => {
  const blob = await (await fetch(by("look-picture").src)).blob();
  put(start, blob, shown.dataset.name);
  start.closest("details").open = true;
  begin();
  look.close();
  by("prompt").focus();
});
