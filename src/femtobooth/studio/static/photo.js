// Cut a photo by dragging over it, or paint over what counts in it.
import { Brush } from "./brush.js";
import { say } from "./studio.js";

const by = (id) => document.getElementById(id);
const box = by("crop"), canvas = box.querySelector("canvas"), image = box.querySelector("img");
const fields = ["left", "top", "width", "height"].map(by);
const [whole, tall] = [Number(box.dataset.width), Number(box.dataset.height)];

function shade() {
  canvas.width = image.clientWidth;
  canvas.height = image.clientHeight;
  const pen = canvas.getContext("2d"), scale = canvas.width / whole;
  const [left, top, width, height] = fields.map((one) => Number(one.value) * scale);
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.clearRect(left, top, width, height);
}

let from = null;
function at(event) {
  const area = canvas.getBoundingClientRect();
  const x = (event.clientX - area.left) / area.width * whole, y = (event.clientY - area.top) / area.height * tall;
  return [Math.min(Math.max(x, 0), whole), Math.min(Math.max(y, 0), tall)];
}
canvas.addEventListener("pointerdown", (event) => { event.preventDefault(); canvas.setPointerCapture(event.pointerId); from = at(event); });
canvas.addEventListener("pointermove", (event) => {
  if (!from) return;
  const to = at(event);
  const values = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])];
  fields.forEach((one, index) => { one.value = Math.floor(values[index]); });
  shade();
});
["pointerup", "pointercancel"].forEach((ends) => canvas.addEventListener(ends, () => { from = null; }));
fields.forEach((one) => one.addEventListener("input", shade));
addEventListener("resize", shade);
shade();

const mask = by("mask");
const brush = new Brush(mask, () => Number(by("brush").value) / 2);
by("erase").addEventListener("click", (event) => {
  brush.erasing = !brush.erasing;
  event.currentTarget.setAttribute("aria-pressed", String(brush.erasing));
});
by("mask-form").addEventListener("submit", async (event) => {
  if (event.submitter?.value !== "mask") return;
  event.preventDefault();
  if (!brush.painted) { say("Nothing is painted yet."); return; }
  const form = new FormData();
  form.set("do", "mask");
  form.set("mask", await brush.blob(Number(mask.dataset.width), Number(mask.dataset.height)), "mask.png");
  const answer = await fetch(event.target.action, { method: "POST", body: form });
  if (answer.ok) location.href = answer.url; else say("The mask could not be kept.");
});
