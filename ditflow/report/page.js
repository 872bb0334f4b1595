"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

// videos: all follow the first one

const videos = [...document.querySelectorAll("video")];
const leader = videos[0];
const scrubber = find("frame");

function frameNow() {
  return Math.min(data.frames - 1, Math.floor(leader.currentTime * data.frameRate + 1e-3));
}

function show(frame) {
  // seek to the middle of the frame: at its start the frame before may still be shown
  for (const video of videos) video.currentTime = Math.min((frame + 0.5) / data.frameRate, video.duration || 1e9);
  updateScrubber(frame);
}

function updateScrubber(frame) {
  scrubber.value = frame;
  find("frame-number").value = frame;
}

function setPlaying(playing) {
  find("play").textContent = playing ? "Pause" : "Play";
  for (const video of videos) playing ? video.play() : video.pause();
  if (playing) requestAnimationFrame(follow);
}

function follow() {
  if (find("play").textContent !== "Pause") return;
  if (leader.ended) {
    show(0);
    setPlaying(true);
    return;
  }
  for (const video of videos.slice(1)) {
    const late = leader.currentTime - video.currentTime;
    if (Math.abs(late) > 1 / data.frameRate && !video.ended) video.currentTime = leader.currentTime;
  }
  updateScrubber(frameNow());
  requestAnimationFrame(follow);
}

const toggle = () => setPlaying(find("play").textContent === "Play");

function goTo(frame) {
  setPlaying(false);
  show(Math.max(0, Math.min(data.frames - 1, frame)));
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
function vectors(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const { perPatch, free } = data.flow;
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

async function startFlow() {
  const frames = {}, sheets = {}, found = {};
  for (const side of ["reference", "result"]) {
    frames[side] = await Promise.all(data.flow.pictures[side].map(picture));
    for (const [block, flow] of Object.entries(data.flow.blocks)) {
      sheets[side + block] = await picture(flow[side].sheet);
      found[side + block] = vectors(flow[side].vectors);
    }
  }
  const draw = () => {
    const query = Number(find("query").value), key = Number(find("key").value), block = find("block").value;
    find("query-number").value = query;
    find("key-number").value = key;
    const distance = data.flow.blocks[block].distance;
    find("distance").textContent = distance === null ? "unknown" : distance.toFixed(3);
    for (const side of ["reference", "result"]) {
      drawPart(find("wheel-" + side), sheets[side + block], data.flow, query, key);
      drawArrows(find("arrows-" + side), frames[side][query], found[side + block], data.flow, query, key);
    }
  };
  for (const id of ["query", "key", "block"]) find(id).addEventListener("input", draw);
  draw();
}

if (data.flow) startFlow();

// optical flow

async function startMotion() {
  const sheets = {};
  for (const [name, source] of Object.entries(data.motion.sheets)) sheets[name] = await picture(source);
  const draw = () => {
    const step = Number(find("motion-step").value);
    find("motion-number").value = step;
    for (const name of Object.keys(sheets)) drawPart(find("wheel-motion-" + name), sheets[name], data.motion, 0, step);
  };
  find("motion-step").addEventListener("input", draw);
  draw();
}

if (data.motion) startMotion();
