// The page of the demo: what its sides share, and painting with steps, samples and locked cells. The other sides are
// caption.js and answer.js.
"use strict";

let GRID = 8; // cells a side, as the model says
const $ = (id) => document.getElementById(id);
const words = (text) => text.toLowerCase().match(/\p{L}+/gu) || [];

// --- talking to the server

class Refusal extends Error {}

async function ask(address, options) {
  let reply;
  try {
    reply = await fetch(address, options);
  } catch {
    throw new Refusal("The server cannot be reached. Is it running?");
  }
  let answer = null;
  try {
    answer = await reply.json();
  } catch {
    // what stands before the server, or its own limit of connections, does not answer in JSON
  }
  if (!reply.ok || !answer) {
    const busy = "Too many are here at once. Please try again in a moment.";
    throw new Refusal(sentence((answer && answer.error) || (reply.status === 503 ? busy : "The server did not answer.")));
  }
  return answer;
}

function sentence(text) {
  const whole = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : whole + ".";
}

function say(notice, text, isNote = false) {
  notice.textContent = text;
  notice.hidden = !text;
  notice.classList.toggle("note", isNote);
}

const later = new Map(); // by button: what was asked for last while it was busy

/** Run `work` with its button busy; what is refused stands in the notice. Of what is asked for meanwhile the latest comes next. */
async function during(button, notice, frame, work) {
  if (button.disabled) {
    later.set(button, work);
    return;
  }
  say(notice, "");
  button.disabled = true;
  button.classList.add("busy");
  frame.classList.add("waiting");
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(notice, error.message);
    notice.scrollIntoView({ block: "nearest" });
  } finally {
    button.disabled = false;
    button.classList.remove("busy");
    frame.classList.remove("waiting");
    const next = later.get(button);
    later.delete(button);
    if (next) await during(button, notice, frame, next);
  }
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// --- the views

const tabs = [$("paint-tab"), $("caption-tab"), $("answer-tab")];
const shown = () => tabs.find((tab) => tab.getAttribute("aria-selected") === "true").getAttribute("aria-controls");

function show(name) {
  for (const tab of tabs) {
    const chosen = tab.id === name + "-tab";
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  scrollTo({ top: 0 });
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const seen = tabs.filter((one) => !one.hidden);
    const way = event.key === "ArrowRight" ? 1 : seen.length - 1;
    const other = seen[(seen.indexOf(tab) + way) % seen.length];
    show(other.getAttribute("aria-controls"));
    other.focus();
  });
}

// --- the model

let model = null;

async function meet() {
  try {
    model = await ask("api/model");
  } catch (error) {
    say($("paint-notice"), error.message);
    return;
  }
  $("model").textContent =
    `${model.name}: ${model.codebook_size} codes, pictures of ${model.image_size} × ${model.image_size} pixels`;
  $("sentence").maxLength = model.limits.letters;
  if (model.grid_size !== GRID) layCells(model.grid_size);
  $("samples").max = $("caption-samples").max = model.limits.samples;
  $("steps").max = Math.min(model.limits.steps, $("steps").max);
  set($("steps"), model.painting.step_count);
  $("steps").disabled = !inSteps();
  set($("temperature"), model.painting.temperature);
  if (model.painting.method === "gibbs") $("temperature").min = $("temperature").step; // it always samples
  if (drawsWords()) set($("caption-temperature"), model.captioning.temperature);
  document.querySelectorAll("output").forEach(refresh);
  begin($("sentence"), model.examples, $("examples"), $("vocabulary"), checkWords);
  meetAnswers();
}

/** Whether the model paints in a number of steps that can be chosen. */
function inSteps() {
  return !model || model.painting.method === "mask_predict";
}

/** Whether the package's own captions are drawn by chance. */
function drawsWords() {
  return model !== null && model.captioning.method === "sample";
}

/** Offer texts to begin with, and the words that the model knows. */
function begin(field, texts, examples, vocabulary, check) {
  for (const text of texts) examples.append(element("button", { type: "button", textContent: text }));
  examples.hidden = texts.length === 0;
  if (!field.value && texts.length) field.value = texts[0];
  if (model.words) {
    vocabulary.hidden = false;
    const chips = model.words.map((word) => element("button", { type: "button", textContent: word }));
    vocabulary.lastElementChild.append(...chips);
  }
  check();
}

/** Examples, words and the enter key do what they say on the field of a form. */
function help(field, examples, vocabulary, form, check) {
  field.addEventListener("input", check);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  examples.addEventListener("click", (event) => {
    if (event.target.tagName !== "BUTTON") return;
    field.value = event.target.textContent;
    check();
    form.requestSubmit();
  });
  vocabulary.addEventListener("click", (event) => {
    if (event.target.tagName !== "BUTTON") return;
    const before = field.value.trimEnd();
    field.value = (before && before + " ") + event.target.textContent;
    check();
  });
}

/** Decimal places of a number. */
const places = (number) => (String(number).split(".")[1] || "").length;

function refresh(output) {
  const range = $(output.htmlFor.value);
  output.textContent = Number(range.value).toFixed(places(range.step));
}

/** Set a slider, whose end and step give way where the value needs it. */
function set(range, value) {
  if (value > range.max) range.max = value;
  if (places(value) > places(range.step)) range.step = (0.1 ** places(value)).toFixed(places(value));
  range.value = value;
  refresh(document.querySelector(`output[for="${range.id}"]`));
}

for (const output of document.querySelectorAll("output")) {
  $(output.htmlFor.value).addEventListener("input", () => refresh(output));
}

/** Several results need chance: the two sliders follow each other. */
function tie(count, temperature, warm) {
  count.addEventListener("input", () => {
    if (count.value > 1 && Number(temperature.value) === 0) set(temperature, warm);
  });
  temperature.addEventListener("input", () => {
    if (Number(temperature.value) === 0) set(count, 1);
  });
}
tie($("samples"), $("temperature"), 1);
tie($("caption-samples"), $("caption-temperature"), 0.5);

function sayUnknown(field, notice) {
  const unknown = model && model.words ? words(field.value).filter((word) => !model.words.includes(word)) : [];
  const names = [...new Set(unknown)].slice(0, 6).join(", ");
  say(notice, names && `The model does not know: ${names}`);
}

function checkWords() {
  sayUnknown($("sentence"), $("unknown"));
}

help($("sentence"), $("examples"), $("vocabulary"), $("paint-form"), checkWords);

// --- painting

let paintings = []; // of the latest reply
let current = null; // the one that is shown
let step = 0; // which of its steps, from 0
let caption = ""; // what was painted
let locked = new Set();
let player = null;

let cells = [];

/** Lay a grid of so many cells a side over pictures. */
function layCells(size) {
  GRID = size;
  document.documentElement.style.setProperty("--grid", size);
  cells = Array.from({ length: GRID * GRID }, (_, number) => {
    const cell = element("button", { type: "button", tabIndex: number ? -1 : 0 });
    cell.dataset.cell = number;
    return cell;
  });
  $("cells").replaceChildren(...cells);
  for (const heat of document.querySelectorAll(".heat")) {
    heat.replaceChildren(...cells.map(() => element("div")));
  }
}
layCells(GRID);

$("paint-form").addEventListener("submit", (event) => {
  event.preventDefault();
  paint({});
});

/** Whether the server sends the painting after each step, too. */
function stepsFit() {
  return !model || $("samples").value * (Number($("steps").value) + 1) <= model.limits.pictures;
}

function paint(start) {
  return during($("paint-button"), $("paint-notice"), $("painting"), async () => {
    const text = $("sentence").value.trim();
    if (!text) throw new Refusal("Write a sentence first.");
    if ($("fresh-seed").checked) $("seed").value = Math.floor(Math.random() * 2 ** 31);
    const wanted = {
      caption: text,
      samples: Number($("samples").value),
      ...(inSteps() ? { steps: Number($("steps").value) } : {}),
      temperature: Number($("temperature").value),
      seed: Number($("seed").value),
      return_steps: stepsFit(),
      ...start,
    };
    const reply = await ask("api/paint", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(wanted),
    });
    const same = start.codes && reply.paintings.every((one) => String(one.codes) === String(start.codes));
    const notes = [...reply.notes];
    if (same) notes.push("The same cells came out again. Change the sentence, or raise the temperature.");
    say($("paint-notice"), notes.join(" "), true);
    paintings = reply.paintings;
    caption = text;
    if (!start.codes) setLocked(new Set());
    $("painting-empty").hidden = true;
    $("painted").hidden = $("cells").hidden = $("painting-tools").hidden = false;
    $("painting-facts").textContent = `seed ${wanted.seed} · ${reply.seconds.toFixed(2)} s`;
    const thumbs = paintings.map((one, number) => {
      const label = `Painting ${number + 1}`;
      return element("button", { type: "button", ariaLabel: label }, element("img", { src: one.image, alt: "" }));
    });
    $("strip").replaceChildren(...thumbs);
    $("strip").hidden = paintings.length < 2;
    choose(0);
    watch(matchMedia("(prefers-reduced-motion: reduce)").matches);
    if (innerWidth <= 768) $("painting").scrollIntoView({ block: "start" });
  });
}

function choose(number) {
  stop();
  current = paintings[number];
  if (!current.steps.length) current.steps = [{ image: current.image, codes: current.codes }];
  [...$("strip").children].forEach((thumb, place) => {
    thumb.classList.toggle("chosen", place === number);
    thumb.ariaPressed = String(place === number);
  });
  $("step").max = current.steps.length;
  $("step-bar").hidden = current.steps.length < 2;
  $("save").href = current.image;
  $("painted").alt = `Painting of: ${caption}`;
  forget();
  showStep(current.steps.length - 1);
}

$("strip").addEventListener("click", (event) => {
  const thumb = event.target.closest("button");
  if (thumb) choose([...$("strip").children].indexOf(thumb));
});

function showStep(number) {
  step = number;
  const now = current.steps[number];
  const before = number > 0 ? current.steps[number - 1].codes : null;
  $("painted").src = now.image;
  $("step").value = number + 1;
  const changed = before ? now.codes.map((code, cell) => code !== before[cell]) : [];
  const count = changed.filter(Boolean).length;
  const tail = before ? ` · ${count} new` : "";
  $("step-label").textContent = `Step ${number + 1} of ${current.steps.length}${tail}`;
  cells.forEach((cell, place) => {
    cell.classList.toggle("fresh", Boolean(changed[place]) && player !== null);
    const where = `row ${Math.floor(place / GRID) + 1}, column ${(place % GRID) + 1}`;
    cell.ariaLabel = `Cell ${where}, code ${now.codes[place]}`;
  });
}

/** Show the steps one after the other; the cells that a step changed are framed. still: show the last one only. */
function watch(still = false) {
  stop();
  if (current.steps.length < 2 || still) return;
  let next = 0;
  const turn = () => {
    if (next === current.steps.length) {
      stop();
      showStep(step);
      return;
    }
    showStep(next);
    next += 1;
  };
  player = setInterval(turn, Math.max(150, Math.min(700, 6000 / current.steps.length)));
  $("play").textContent = "Stop";
  turn();
}

/** Show the painting itself, its last step. */
function showWhole() {
  stop();
  showStep(current.steps.length - 1);
}

function stop() {
  clearInterval(player);
  player = null;
  $("play").textContent = "Watch";
}

$("play").addEventListener("click", () => {
  forget();
  if (player === null) watch();
  else showWhole();
});
$("step").addEventListener("input", () => {
  stop();
  forget();
  showStep(Number($("step").value) - 1);
});

// --- cells: looking into them, locking them

const locking = () => document.querySelector("input[name=touch]:checked").value === "lock";

for (const radio of document.querySelectorAll("input[name=touch]")) {
  radio.addEventListener("change", () => {
    $("look").hidden = locking();
    $("lock").hidden = !locking();
    $("cells").classList.toggle("locking", locking());
    $("step").disabled = $("play").disabled = locking(); // what is locked is the painting itself
    forget();
    if (locking()) showWhole();
  });
}

function forget() {
  cells.forEach((cell) => cell.classList.remove("chosen"));
  tellPressed();
  $("patches").replaceChildren();
  $("look-hint").textContent = "Touch a cell of the painting to see what its code stands for.";
}

async function lookInto(number) {
  stop();
  showStep(step);
  forget();
  cells[number].classList.add("chosen");
  tellPressed();
  const code = current.steps[step].codes[number];
  if (code < 0) {
    $("look-hint").textContent = "This cell is not painted yet.";
    return;
  }
  if (!model || !model.has_examples) {
    $("look-hint").textContent = `Code ${code}. This package has no pictures of its codes.`;
    return;
  }
  let found = null;
  let problem = "";
  try {
    found = await ask(`api/codes/${code}`);
  } catch (error) {
    problem = error.message;
  }
  // another cell was touched meanwhile, or this one at another step
  if (!cells[number].classList.contains("chosen") || current.steps[step].codes[number] !== code) return;
  if (!found) {
    $("look-hint").textContent = problem;
    return;
  }
  const count = found.examples.length;
  $("look-hint").textContent = count
    ? `Code ${code}: the patches of training pictures nearest to its centroid.`
    : `Code ${code}: no training picture has it.`;
  const alt = (place) => `Patch ${place + 1} of code ${code}`;
  $("patches").replaceChildren(...found.examples.map((source, place) => element("img", { src: source, alt: alt(place) })));
}

/** Say of each cell whether it is locked, or looked into, to those who do not see it. */
function tellPressed() {
  for (const cell of cells) cell.ariaPressed = String(cell.classList.contains(locking() ? "locked" : "chosen"));
}

function setLocked(chosen) {
  locked = chosen;
  cells.forEach((cell, number) => cell.classList.toggle("locked", locked.has(number)));
  tellPressed();
  $("locked-count").textContent = locked.size === 1 ? "1 cell locked." : `${locked.size} cells locked.`;
  $("repaint").disabled = locked.size === 0 || locked.size === cells.length;
}
setLocked(new Set());

function lockOne(number, wanted) {
  const chosen = new Set(locked);
  if (wanted) chosen.add(number);
  else chosen.delete(number);
  setLocked(chosen);
}

let drawing = null; // whether the pointer that is down locks or unlocks

$("cells").addEventListener("pointerdown", (event) => {
  const cell = event.target.closest("[data-cell]");
  if (!cell || !locking() || event.button > 0) return;
  if (player !== null) showWhole(); // what is locked is what is shown
  drawing = !locked.has(Number(cell.dataset.cell));
  lockOne(Number(cell.dataset.cell), drawing);
});
document.addEventListener("pointermove", (event) => {
  if (drawing === null) return;
  const under = document.elementFromPoint(event.clientX, event.clientY);
  const cell = under && under.closest("[data-cell]");
  if (cell) lockOne(Number(cell.dataset.cell), drawing);
});
for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => (drawing = null));

$("cells").addEventListener("click", (event) => {
  const cell = event.target.closest("[data-cell]");
  if (!cell) return;
  const number = Number(cell.dataset.cell);
  if (!locking()) lookInto(number);
  else if (event.detail === 0) {
    // by keyboard; the pointer has done it
    if (player !== null) showWhole();
    lockOne(number, !locked.has(number));
  }
});
$("cells").addEventListener("keydown", (event) => {
  const ways = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -GRID, ArrowDown: GRID };
  const way = ways[event.key];
  if (!way) return;
  event.preventDefault();
  const number = cells.indexOf(document.activeElement) + way;
  if (number < 0 || number >= cells.length) return;
  document.activeElement.tabIndex = -1;
  cells[number].tabIndex = 0;
  cells[number].focus();
});

$("lock-all").addEventListener("click", () => setLocked(new Set(cells.keys())));
$("lock-none").addEventListener("click", () => setLocked(new Set()));
$("lock-swap").addEventListener("click", () => setLocked(new Set([...cells.keys()].filter((cell) => !locked.has(cell)))));
$("repaint").addEventListener("click", () => paint({ codes: current.codes, locked: [...locked] }));

/** The painting that is shown, as the file that the server is sent. */
function paintedFile() {
  const bytes = Uint8Array.from(atob(current.image.split(",")[1]), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

$("caption-painting").addEventListener("click", () => {
  show("caption");
  describe(paintedFile(), caption);
});
