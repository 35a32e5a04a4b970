// A run while it learns: what is known so far, then the stream of its events. Whatever breaks, it asks again.
const live = document.getElementById("live");
const run = live.dataset.run;
const noun = live.dataset.noun || "thing";
const by = (id) => document.getElementById(id);
const SERIES = {
  "loss/instance": ["loss", "photos"], "loss/prior": ["loss", "class"], "loss/train": ["loss", "photos"],
  "loss/validation": ["loss", "class"], "validation/fidelity": ["judged", "likeness"],
  "validation/prompt": ["judged", "obedience"], "validation/drift": ["judged", "drift"],
  "accuracy/validation": ["judged", "accuracy"],
};
const recognizer = live.dataset.kind === "finetune";
const NAMES = {
  photos: recognizer ? "on pictures that it learns from" : "on your photos",
  class: recognizer ? "on other pictures" : `on other ${noun}s`, likeness: "likeness to your photos",
  obedience: "does what the words say", drift: `change of other ${noun}s`, accuracy: "right answers",
};
const WORDS = [
  [/^class images/, "Drawing ordinary pictures to remember"], [/^samples/, "Drawing samples"],
  [/^validation/, "Drawing pictures to judge"], [/^training$/, "Learning"], [/^base$/, "Loading the model"],
  [/^photos$/, "Looking at the photos"], [/^identifier$/, "Choosing a word for it"], [/^result$/, "Finishing"],
  [/^near-copies/, "Looking for copies of your photos"], [/^latents/, "Preparing the photos"],
];
const MOST_TIMES = 40;
const WORKING = ["queued", "running", "stopping"];
let state, source, shown = -1, follow = true, plots = {}, waiting = false;

function words(what) {
  const found = WORDS.find(([pattern]) => pattern.test(what));
  return found ? found[1] : what ? what[0].toUpperCase() + what.slice(1) : "";
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// How far it is

function tellState() {
  const { step, steps, status } = state;
  const bar = by("bar");
  if (steps) {
    by("where").textContent = status === "done" ? `${steps} steps done` : `Step ${step} of ${steps}`;
    bar.max = steps;
    bar.value = status === "done" ? steps : step;
  }
  by("left").textContent = status === "running" ? left() : ["interrupted", "paused"].includes(status) ? "nothing is lost" : "";
  const doing = status === "running" ? state.doing : null;
  by("doing").textContent = doing && doing.what !== "training"
    ? words(doing.what) + (doing.total ? `: ${Math.floor(doing.done)} of ${doing.total}` : "") : "";
  by("doing").hidden = !by("doing").textContent;
  by("state").hidden = status === "done";
}

function left() {
  const times = state.times;
  if (times.length < 3 || !state.steps) return "";
  const [first, last] = [times[0], times[times.length - 1]];
  if (last[1] <= first[1]) return "";
  if (last[1] >= state.steps) return "nearly done";
  const each = (last[0] - first[0]) / (last[1] - first[1]);
  return `about ${duration(each * (state.steps - last[1]))} left`;
}

// What it draws

function tellShots() {
  if (!by("shown")) return;
  const shots = state.shots;
  document.querySelector(".scrub").hidden = shots.length < 2;
  if (!shots.length) return;
  const scrub = by("scrub");
  scrub.max = shots.length - 1;
  if (follow) scrub.value = shots.length - 1;
  show(Number(scrub.value));
}

function show(index) {
  const shot = state.shots[index];
  if (!shot) return;
  const steps = shot.step ? `step ${shot.step}` : "before";
  by("at").textContent = steps;
  by("scrub").setAttribute("aria-valuetext", steps);
  const box = by("shown");
  // a row for each prompt; pictures that are there already are only given another address
  const shape = shot.rows.map((urls) => urls.length).join();
  if (box.dataset.shape !== shape) {
    box.dataset.shape = shape;
    box.replaceChildren(...shot.rows.map((urls) => {
      const figure = document.createElement("figure"), strip = document.createElement("div"), text = document.createElement("figcaption");
      strip.className = "pictures";
      strip.append(...urls.map(() => document.createElement("img")));
      figure.append(strip, text);
      return figure;
    }));
  }
  shot.rows.forEach((urls, row) => {
    const figure = box.children[row], prompt = state.prompts[row] || "";
    figure.lastChild.textContent = prompt;
    [...figure.firstChild.children].forEach((image, place) => {
      if (image.getAttribute("src") !== urls[place]) image.src = urls[place];
      image.alt = `${prompt}, ${steps}`;
    });
  });
  shown = index;
}

// Curves

function chart(name) {
  const series = state.charts[name];
  if (!series) return;
  const box = by(`chart-${name}`);
  const names = Object.keys(series);
  const steps = [...new Set(names.flatMap((line) => series[line].map((point) => point[0])))].sort((a, b) => a - b);
  const at = new Map(steps.map((step, index) => [step, index]));
  const data = [steps, ...names.map((line) => {
    const values = Array(steps.length).fill(null);
    series[line].forEach(([step, value]) => { values[at.get(step)] = value; });
    return name === "loss" ? smooth(values) : values;
  })];
  by("no-chart").hidden = true;
  box.hidden = false;
  box.dataset.points = steps.length;
  const known = plots[name];
  if (known && known.names.join() === names.join()) {
    known.plot.setData(data);
    return;
  }
  if (known) known.plot.destroy();
  const holder = box.querySelector(".plot");
  const ink = colour("--soft"), line = colour("--line");
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui, sans-serif" };
  const plot = new uPlot({
    width: Math.max(200, holder.clientWidth), height: 190, cursor: { y: false }, legend: { show: false },
    scales: { x: { time: false, ...(name === "judged" ? { range: (_, low, high) => [0, Math.max(state.steps || 0, high)] } : {}) } },
    axes: [{ ...axis, size: 32, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }, { ...axis, size: 46 }],
    series: [{}, ...names.map((_, index) => ({
      stroke: colour(`--s${index}`), width: 2, spanGaps: true, points: { show: name !== "loss", size: 6 },
      dash: [[], [8, 4], [2, 4], [10, 3, 2, 3]][index % 4],
    }))],
  }, data, holder);
  plot.root.setAttribute("aria-hidden", "true");
  plots[name] = { plot, names };
  const keys = box.querySelector(".keys");
  keys.replaceChildren(...names.map((one, index) => {
    const item = document.createElement("li");
    item.className = `k${index}`;
    item.append(document.createElement("i"), NAMES[one] || one);
    return item;
  }));
}

function smooth(values) {
  // a running mean that forgets: single steps jump about with their noise
  let mean = null;
  return values.map((value) => {
    if (value === null) return null;
    mean = mean === null ? value : 0.85 * mean + 0.15 * value;
    return mean;
  });
}

let drawn = false;
function drawSoon() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(() => { drawn = false; ["loss", "judged"].forEach(chart); });
}

function redrawAll() {
  Object.values(plots).forEach(({ plot }) => plot.destroy());
  plots = {};
  drawSoon();
}

// What it said

function tell(one) {
  const item = document.createElement("li");
  item.className = one.kind;
  const time = document.createElement("time");
  time.textContent = new Date(one.time * 1000).toLocaleTimeString();
  item.append(time, one.text);
  by("log").append(item);
}

// The stream

function hear(event) {
  state.seq = Math.max(state.seq, event.seq || 0);
  if (event.kind === "metrics") {
    for (const [name, value] of Object.entries(event.values)) {
      if (!(name in SERIES) || value === null) continue;
      const [box, line] = SERIES[name];
      const points = ((state.charts[box] ||= {})[line] ||= []);
      while (points.length && points[points.length - 1][0] >= event.step) points.pop();
      points.push([event.step, value]);
    }
    drawSoon();
  } else if (event.kind === "progress") {
    state.doing = event.state === "running" ? { what: event.description, done: event.done, total: event.total } : null;
    if (event.description === "training") {
      state.step = event.done;
      state.steps = event.total || state.steps;
      if (state.times.length && state.times[state.times.length - 1][1] > event.done) state.times = [];
      state.times.push([event.time, event.done]);
      state.times = state.times.slice(-MOST_TIMES);
    }
    tellState();
  } else if (event.kind === "stage" && event.state === "running") {
    state.doing = { what: event.stage[event.stage.length - 1], done: null, total: null };
    tellState();
  } else if (event.kind === "picture") {
    reload();
  } else if (event.text) {
    tell({ kind: event.kind, time: event.time, text: event.text.trim() });
    if (event.kind === "error" || event.kind === "result") changed();
  }
}

function listen() {
  if (source) source.close();
  source = new EventSource(`/api/v1/runs/${run}/events?after=${state.seq}`);
  source.addEventListener("message", (message) => hear(JSON.parse(message.data)));
  source.addEventListener("open", () => live.removeAttribute("data-lost"));
  source.addEventListener("end", () => { source.close(); source = null; changed(); again(); });
  source.onerror = () => {
    if (!source) return;
    live.dataset.lost = "1";
    if (source.readyState === EventSource.CLOSED) again();
  };
}

function again() {
  if (waiting) return;
  waiting = true;
  if (source) source.close();
  source = null;
  setTimeout(() => { waiting = false; load(); }, 2000);
}

function changed() {
  document.body.dispatchEvent(new Event("state-changed"));
}

let asked = false;
async function reload() {
  if (asked) return;
  asked = true;
  await new Promise((done) => setTimeout(done, 150));
  asked = false;
  try {
    const answer = await fetch(`/runs/${run}/state`);
    if (!answer.ok) return;
    const fresh = await answer.json();
    state.shots = fresh.shots;
    state.status = fresh.status;
    state.chosen = fresh.chosen;
    tellShots();
    tellState();
  } catch { /* the next event asks again */ }
}

async function load() {
  try {
    const answer = await fetch(`/runs/${run}/state`);
    if (!answer.ok) throw new Error(answer.status);
    state = await answer.json();
  } catch {
    again();
    return;
  }
  by("log").replaceChildren();
  state.told.forEach(tell);
  tellState();
  tellShots();
  drawSoon();
  if (WORKING.includes(state.status)) listen();
}

by("scrub")?.addEventListener("input", (event) => {
  const index = Number(event.target.value);
  follow = index === state.shots.length - 1;
  show(index);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
let width = window.innerWidth;
addEventListener("resize", () => { if (width !== window.innerWidth) { width = window.innerWidth; redrawAll(); } });

// The head asks every few seconds how the run stands; where that changed, the rest follows.
document.body.addEventListener("htmx:afterSettle", () => {
  const status = by("head")?.dataset.status;
  if (!state || !status) return;
  if (status === state.status) return;
  if (status === "done") location.reload();
  else load();
});
load();
