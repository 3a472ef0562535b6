// The page of the demo: painting with steps, samples and locked cells; captions with attention; from each to the other.
"use strict";

const GRID = 8;
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

/** Run `work` with its button busy; what is refused stands in the notice. */
async function during(button, notice, frame, work) {
  if (button.disabled) return;
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
  }
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// --- the two views

const tabs = [$("paint-tab"), $("caption-tab")];

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
    const other = tabs[1 - tabs.indexOf(tab)];
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
  $("steps").value = model.painting.steps;
  $("temperature").value = model.painting.temperature;
  document.querySelectorAll("output").forEach(refresh);
  for (const text of model.examples) $("examples").append(element("button", { type: "button", textContent: text }));
  $("examples").hidden = model.examples.length === 0;
  if (!$("sentence").value && model.examples.length) $("sentence").value = model.examples[0];
  if (model.words) {
    $("vocabulary").hidden = false;
    const chips = model.words.map((word) => element("button", { type: "button", textContent: word }));
    $("vocabulary").lastElementChild.append(...chips);
  }
  checkWords();
}

function refresh(output) {
  const range = $(output.htmlFor.value);
  output.textContent = range.step === "0.1" ? Number(range.value).toFixed(1) : range.value;
}

for (const output of document.querySelectorAll("output")) {
  $(output.htmlFor.value).addEventListener("input", () => refresh(output));
}

/** Several results need chance: the two sliders follow each other. */
function tie(count, temperature, warm) {
  const set = (range, value) => {
    range.value = value;
    refresh(document.querySelector(`output[for="${range.id}"]`));
  };
  count.addEventListener("input", () => {
    if (count.value > 1 && Number(temperature.value) === 0) set(temperature, warm);
  });
  temperature.addEventListener("input", () => {
    if (Number(temperature.value) === 0) set(count, 1);
  });
}
tie($("samples"), $("temperature"), 1);
tie($("caption-samples"), $("caption-temperature"), 0.5);

function checkWords() {
  const unknown = model && model.words ? words($("sentence").value).filter((word) => !model.words.includes(word)) : [];
  const names = [...new Set(unknown)].slice(0, 6).join(", ");
  say($("unknown"), names && `The model does not know: ${names}`);
}

$("sentence").addEventListener("input", checkWords);
$("sentence").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("paint-form").requestSubmit();
});
$("examples").addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  $("sentence").value = event.target.textContent;
  checkWords();
  $("paint-form").requestSubmit();
});
$("vocabulary").addEventListener("click", (event) => {
  if (event.target.tagName !== "BUTTON") return;
  const before = $("sentence").value.trimEnd();
  $("sentence").value = (before && before + " ") + event.target.textContent;
  checkWords();
});

// --- painting

let paintings = []; // of the latest reply
let current = null; // the one that is shown
let step = 0; // which of its steps, from 0
let caption = ""; // what was painted
let locked = new Set();
let player = null;

const cells = Array.from({ length: GRID * GRID }, (_, number) => {
  const cell = element("button", { type: "button", tabIndex: number ? -1 : 0 });
  cell.dataset.cell = number;
  return cell;
});
$("cells").append(...cells);

$("paint-form").addEventListener("submit", (event) => {
  event.preventDefault();
  paint({});
});

function paint(start) {
  return during($("paint-button"), $("paint-notice"), $("painting"), async () => {
    const text = $("sentence").value.trim();
    if (!text) throw new Refusal("Write a sentence first.");
    if ($("fresh-seed").checked) $("seed").value = Math.floor(Math.random() * 2 ** 31);
    const wanted = {
      caption: text,
      samples: Number($("samples").value),
      steps: Number($("steps").value),
      temperature: Number($("temperature").value),
      seed: Number($("seed").value),
      return_steps: true,
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
    watch();
    if (innerWidth <= 768) $("painting").scrollIntoView({ block: "start" });
  });
}

function choose(number) {
  stop();
  current = paintings[number];
  [...$("strip").children].forEach((thumb, place) => thumb.classList.toggle("chosen", place === number));
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

/** Show the steps one after the other; the cells that a step changed are framed. */
function watch() {
  stop();
  if (current.steps.length < 2 || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
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

function stop() {
  clearInterval(player);
  player = null;
  $("play").textContent = "Watch";
}

$("play").addEventListener("click", () => {
  if (player === null) {
    watch();
  } else {
    stop();
    showStep(current.steps.length - 1);
  }
});
$("step").addEventListener("input", () => {
  stop();
  showStep(Number($("step").value) - 1);
});

// --- cells: looking into them, locking them

const locking = () => document.querySelector("input[name=touch]:checked").value === "lock";

for (const radio of document.querySelectorAll("input[name=touch]")) {
  radio.addEventListener("change", () => {
    $("look").hidden = locking();
    $("lock").hidden = !locking();
    $("cells").classList.toggle("locking", locking());
    forget();
    if (locking()) {
      stop();
      showStep(current.steps.length - 1);
    }
  });
}

function forget() {
  cells.forEach((cell) => cell.classList.remove("chosen"));
  $("patches").replaceChildren();
  $("look-hint").textContent = "Touch a cell of the painting to see what its code stands for.";
}

async function lookInto(number) {
  stop();
  showStep(step);
  forget();
  cells[number].classList.add("chosen");
  const code = current.steps[step].codes[number];
  if (code < 0) {
    $("look-hint").textContent = "This cell is not painted yet.";
    return;
  }
  if (!model || !model.has_examples) {
    $("look-hint").textContent = `Code ${code}. This package has no pictures of its codes.`;
    return;
  }
  let found;
  try {
    found = await ask(`api/codes/${code}`);
  } catch (error) {
    $("look-hint").textContent = error.message;
    return;
  }
  if (!cells[number].classList.contains("chosen")) return; // another cell was touched meanwhile
  const count = found.examples.length;
  $("look-hint").textContent = count
    ? `Code ${code}: the patches of training pictures nearest to its centroid.`
    : `Code ${code}: no training picture has it.`;
  const alt = (place) => `Patch ${place + 1} of code ${code}`;
  $("patches").replaceChildren(...found.examples.map((source, place) => element("img", { src: source, alt: alt(place) })));
}

function setLocked(chosen) {
  locked = chosen;
  cells.forEach((cell, number) => cell.classList.toggle("locked", locked.has(number)));
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
  else if (event.detail === 0) lockOne(number, !locked.has(number)); // by keyboard; the pointer has done it
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

$("caption-painting").addEventListener("click", () => {
  const bytes = Uint8Array.from(atob(current.image.split(",")[1]), (letter) => letter.charCodeAt(0));
  show("caption");
  describe(new Blob([bytes], { type: "image/png" }), caption);
});

// --- captions

let picture = null; // the Blob that was captioned
let origin = ""; // the sentence that it was painted from
let address = null; // of the picture that is shown

$("heat").append(...Array.from({ length: GRID * GRID }, () => element("div")));

function describe(content, paintedFrom) {
  if (!content) return;
  return during($("choose"), $("caption-notice"), $("photo"), async () => {
    if (model && content.size > model.limits.upload_bytes) {
      const mebibytes = (bytes) => `${Number((bytes / 2 ** 20).toPrecision(2))} MiB`;
      throw new Refusal(
        `The picture has ${mebibytes(content.size)}, at most ${mebibytes(model.limits.upload_bytes)} are taken.`,
      );
    }
    const query = new URLSearchParams({ attention: "true", samples: $("caption-samples").value });
    if (Number($("caption-temperature").value) > 0) query.set("temperature", $("caption-temperature").value);
    const type = /^image\//.test(content.type) ? content.type : "application/octet-stream";
    const reply = await ask("api/caption?" + query, {
      method: "POST",
      headers: { "Content-Type": type },
      body: content,
    });
    picture = content;
    origin = paintedFrom;
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(content);
    $("shown").src = address;
    $("shown").alt = reply.captions[0].text;
    $("shown").hidden = $("heat").hidden = false;
    $("photo-empty").hidden = true;
    say($("origin"), origin && `Painted from: ${origin}`);
    $("captions").replaceChildren(...reply.captions.map(captionItem));
    $("written").hidden = false;
    $("caption-again").disabled = false;
    lookAt(null);
    if (innerWidth <= 768) scrollTo({ top: 0 });
  });
}

function captionItem(found) {
  const line = element("p", { className: "words" });
  found.words.forEach((one, number) => {
    const word = element("button", { type: "button", textContent: one.word });
    const look = () => lookAt(word, one.cells);
    word.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look());
    word.addEventListener("focus", look);
    word.addEventListener("click", look);
    if (number && /[\p{L}\p{N}]/u.test(one.word)) line.append(" ");
    line.append(word);
  });
  line.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && lookAt(null));
  const again = element("button", { type: "button", className: "strong paint-caption", textContent: "Paint this caption" });
  again.addEventListener("click", () => {
    $("sentence").value = found.text;
    checkWords();
    show("paint");
    paint({});
  });
  return element("li", {}, line, again);
}

/** Darken the picture where the word did not look; null shows all of it. */
function lookAt(word, weights = null) {
  for (const other of $("captions").querySelectorAll(".chosen")) other.classList.remove("chosen");
  if (word) word.classList.add("chosen");
  const most = weights ? Math.max(...weights) : 1;
  [...$("heat").children].forEach((cell, number) => {
    const dark = weights ? 0.75 * (1 - weights[number] / most) : 0;
    cell.style.backgroundColor = `rgba(12, 16, 24, ${dark.toFixed(3)})`;
  });
}

$("choose").addEventListener("click", () => $("file").click());
for (const input of [$("file"), $("snapshot")]) {
  input.addEventListener("change", () => {
    describe(input.files[0], "");
    input.value = "";
  });
}
$("caption-again").addEventListener("click", () => describe(picture, origin));

for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name !== "drop" || !event.dataTransfer.files.length) return;
    show("caption");
    describe(event.dataTransfer.files[0], "");
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  show("caption");
  describe(file, "");
});

// --- the camera: the phone's own where there is one to tap for, else a viewfinder here

let stream = null;

$("camera").addEventListener("click", async () => {
  if (!navigator.mediaDevices || matchMedia("(pointer: coarse)").matches) {
    $("snapshot").click();
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    say($("caption-notice"), "The camera cannot be used. Allow it in the browser, or choose a picture.");
    return;
  }
  say($("caption-notice"), "");
  $("video").srcObject = stream;
  $("viewfinder").showModal();
});
$("shoot").addEventListener("click", () => {
  const video = $("video");
  if (!video.videoWidth) return;
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((content) => {
    $("viewfinder").close();
    describe(content, "");
  }, "image/jpeg", 0.92);
});
$("close-camera").addEventListener("click", () => $("viewfinder").close());
$("viewfinder").addEventListener("close", () => {
  if (stream) for (const track of stream.getTracks()) track.stop();
  stream = null;
});

meet();
