"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const find = (...parts) => document.getElementById(parts.join("-"));

// videos: all keep the time of the longest one, the leader; shorter ones begin again meanwhile

const rows = [...document.querySelectorAll(".clip")].map((row, index) => {
  const { frames, frameRate } = data.clips[index];
  return { videos: [...row.querySelectorAll("video")], frames, frameRate, seconds: frames / frameRate };
});
const longest = rows.reduce((first, row) => (row.seconds > first.seconds ? row : first));
const leader = longest.videos[0];
const scrubber = find("frame");

function frameNow() {
  return Math.min(longest.frames - 1, Math.floor(leader.currentTime * longest.frameRate + 1e-3));
}

function show(frame) {
  // seek to the middle of the frame: at its start the frame before may still be shown
  const time = (frame + 0.5) / longest.frameRate;
  for (const { videos, seconds } of rows) for (const video of videos) video.currentTime = time % seconds;
  updateScrubber(frame);
}

function updateScrubber(frame) {
  scrubber.value = frame;
  find("frame-number").value = frame;
}

function setPlaying(playing) {
  find("play").textContent = playing ? "Pause" : "Play";
  for (const { videos } of rows) for (const video of videos) playing ? start(video) : video.pause();
  if (playing) requestAnimationFrame(follow);
}

async function start(video) {
  try {
    await video.play();
  } catch (error) {
    if (error.name === "NotAllowedError") setPlaying(false); // this browser plays nothing by itself
  }
}

function follow() {
  if (find("play").textContent !== "Pause") return;
  for (const { videos, frameRate, seconds } of rows) {
    const time = leader.currentTime % seconds;
    for (const video of videos) {
      const late = Math.abs(time - video.currentTime);
      // one that has begun again is as near as one that is about to
      if (Math.min(late, seconds - late) > 1 / frameRate) video.currentTime = time;
    }
  }
  updateScrubber(frameNow());
  requestAnimationFrame(follow);
}

const toggle = () => setPlaying(find("play").textContent === "Play");

function goTo(frame) {
  setPlaying(false);
  show(Math.max(0, Math.min(longest.frames - 1, frame)));
}

find("play").addEventListener("click", toggle);
scrubber.addEventListener("input", () => goTo(Number(scrubber.value)));
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, button, summary, a")) return;
  const actions = { " ": toggle, ArrowRight: () => goTo(frameNow() + 1), ArrowLeft: () => goTo(frameNow() - 1) };
  if (!actions[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  actions[event.key]();
});

setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);

// motion flow

function picture(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("an image of this page cannot be read"));
    image.src = source;
  });
}

// displacements in patches; NaN where nothing is asked
function vectors(text, { perPatch, free }) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (part) => (part === free ? NaN : part / perPatch));
}

const SPACING = 24; // smallest distance between arrows, pixels
const CANVAS = 640; // smallest width of a canvas with arrows, pixels
const FREE = "rgba(150, 150, 150, 0.7)"; // veils cells of which nothing is asked

// draw one picture of a sheet of pictures of the same size
function drawPart(canvas, sheet, { width, height }, row, column) {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").drawImage(sheet, column * width, row * height, width, height, 0, 0, width, height);
}

function drawArrows(canvas, frame, found, flow, query, key) {
  const enlarge = Math.max(1, Math.ceil(CANVAS / frame.width));
  canvas.width = frame.width * enlarge;
  canvas.height = frame.height * enlarge;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(frame, 0, 0, canvas.width, canvas.height);
  const wide = canvas.width / flow.width, high = canvas.height / flow.height;
  const across = Math.ceil(SPACING / wide), down = Math.ceil(SPACING / high);
  const first = (query * flow.frames + key) * flow.height * flow.width;
  context.fillStyle = FREE;
  for (let cell = 0; cell < flow.height * flow.width; cell++) {
    if (!Number.isNaN(found[2 * (first + cell)])) continue;
    const x = cell % flow.width, y = Math.floor(cell / flow.width);
    const left = Math.round(x * wide), top = Math.round(y * high); // whole pixels, so that no seams show
    context.fillRect(left, top, Math.round((x + 1) * wide) - left, Math.round((y + 1) * high) - top);
  }
  for (let y = down >> 1; y < flow.height; y += down) {
    for (let x = across >> 1; x < flow.width; x += across) {
      const at = 2 * (first + y * flow.width + x);
      const reach = [found[at] * wide, found[at + 1] * high];
      if (Math.hypot(...reach) > 0) drawArrow(context, [(x + 0.5) * wide, (y + 0.5) * high], reach);
    }
  }
}

function drawArrow(context, [x, y], [dx, dy]) {
  const turn = Math.atan2(dy, dx), head = Math.min(9, Math.hypot(dx, dy));
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + dx, y + dy);
  for (const side of [-0.5, 0.5]) {
    context.moveTo(x + dx, y + dy);
    context.lineTo(x + dx - head * Math.cos(turn + side), y + dy - head * Math.sin(turn + side));
  }
  // white with a dark edge, visible on any picture
  for (const [width, colour] of [[4, "black"], [1.8, "white"]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
  }
}

async function startFlow(flow, run) {
  const frames = {}, sheets = {}, found = {};
  for (const side of ["reference", "result"]) {
    frames[side] = await Promise.all(flow.pictures[side].map(picture));
    for (const [block, sides] of Object.entries(flow.blocks)) {
      sheets[side + block] = await picture(sides[side].sheet);
      found[side + block] = vectors(sides[side].vectors, flow);
    }
  }
  const draw = () => {
    const [query, key] = ["query", "key"].map((name) => Number(find(name, run).value));
    const block = find("block", run).value, { distance } = flow.blocks[block];
    find("query-number", run).value = query;
    find("key-number", run).value = key;
    find("distance", run).textContent = distance === null ? "unknown" : distance.toFixed(3);
    for (const side of ["reference", "result"]) {
      drawPart(find("wheel", side, run), sheets[side + block], flow, query, key);
      drawArrows(find("arrows", side, run), frames[side][query], found[side + block], flow, query, key);
    }
  };
  for (const id of ["query", "key", "block"]) find(id, run).addEventListener("input", draw);
  draw();
}

data.flow.forEach((flow, run) => flow && startFlow(flow, run));

// optical flow

async function startMotion(motion, run) {
  const sheets = {};
  for (const [name, source] of Object.entries(motion.sheets)) sheets[name] = await picture(source);
  const draw = () => {
    const step = Number(find("motion-step", run).value);
    find("motion-number", run).value = step;
    for (const name of Object.keys(sheets)) drawPart(find("wheel-motion", name, run), sheets[name], motion, 0, step);
  };
  find("motion-step", run).addEventListener("input", draw);
  draw();
}

data.motion.forEach((motion, run) => motion && startMotion(motion, run));
