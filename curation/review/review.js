"use strict";

// The page of `flashvideo review`. Text from the server is only ever set as text. Nothing is loaded from elsewhere.

const byId = (id) => document.getElementById(id);
const token = document.querySelector('meta[name="review-token"]').content;
const KEEP = 1, DROP = 0, SKIP = null, TIE = 0.5;
let facts = null; // what does not change while the page is open
let items = []; // what comes next: lists of one clip, or of two
let state = null; // the newest answer of the server
let writes = Promise.resolve(); // one after the other, in the order of the keys
let writing = 0;
let half = false;

function element(tag, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset || {});
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", "X-Review-Token": token } };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is `flashvideo review` still running?");
  }
  const data = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(data.error || `${answer.status} ${answer.statusText}`);
  return data;
}

let toastTimer = 0;
function toast(text, wrong = false) {
  const shown = byId("toast");
  shown.textContent = text;
  shown.className = `is-shown${wrong ? " is-wrong" : ""}`;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (shown.className = ""), wrong ? 6000 : 1100);
}

// ---- clips

const views = new Map(); // clip_id -> element, for those that come next

function seconds(us) {
  return (us / 1e6).toFixed(2);
}

function span(clip) {
  return clip.media_type === "image" ? "image" : `${seconds(clip.start_us)} – ${seconds(clip.end_us)} s`;
}

function makeView(clip) {
  const figure = element("figure", { className: "clip is-cutting" });
  const address = encodeURIComponent(clip.clip_id);
  const image = clip.media_type === "image";
  const media = image
    ? element("img", { alt: clip.name, hidden: true })
    : element("video", { poster: `/thumb/${address}`, muted: true, defaultMuted: true, loop: true, playsInline: true, preload: "auto" });
  const tag = element("span", { className: "tag" });
  const fail = (why) => {
    figure.classList.remove("is-cutting");
    figure.append(element("p", { className: "trouble" }, element("b", {}, "This clip cannot be shown"), why));
  };
  media.addEventListener(image ? "load" : "loadeddata", () => {
    media.hidden = false;
    figure.classList.remove("is-cutting");
    if (figure.isConnected) play(figure);
  });
  media.addEventListener("error", () => media.getAttribute("src") && fail("The browser does not play it."));
  if (!image) media.addEventListener("ratechange", () => (tag.textContent = media.playbackRate === 1 ? "" : `${media.playbackRate}×`));
  figure.append(media, tag);
  figure.made = whenMade(address, () => figure.isConnected || views.get(clip.clip_id) === figure);
  figure.made.then((how) => how && (media.src = `/clip/${address}`), (error) => fail(error.message));
  return figure;
}

// Asked for again and again instead of waited for: a browser has six connections to a server, and labels need one.
async function whenMade(address, wanted) {
  for (;;) {
    const { how } = await ask(`/api/clip/${address}`);
    if (how) return how;
    await new Promise((resolve) => setTimeout(resolve, 300));
    if (!wanted()) return null;
  }
}

function viewOf(clip) {
  if (!views.has(clip.clip_id)) views.set(clip.clip_id, makeView(clip));
  return views.get(clip.clip_id);
}

function play(figure) {
  const video = figure.querySelector("video");
  if (!video) return;
  video.playbackRate = half ? 0.5 : 1;
  video.play().catch(() => {}); // a browser that saves power shows the poster until Space
}

function stop(figure) {
  const video = figure.querySelector("video");
  if (video) { video.pause(); video.currentTime = 0; }
}

function number(value) {
  if (Number.isInteger(value)) return String(value);
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

function count(number_, noun) {
  return `${number_} ${noun}${number_ === 1 ? "" : "s"}`;
}

function commas(words) {
  return words.replace(/,/g, ", ");
}

function describe(clip, figure, heading) {
  const box = element("div", { className: "facts" });
  if (heading) box.append(element("p", { className: "heading" }, heading));
  box.append(element("h1", {}, clip.name));
  const size = clip.width && clip.height ? ` · ${clip.width} × ${clip.height}` : "";
  const rate = clip.frame_rate_hz && clip.media_type !== "image" ? ` · ${number(clip.frame_rate_hz)} fps` : "";
  box.append(element("p", { className: "place" }, span(clip) + size + rate));
  const words = element("p", { className: "words" });
  if (clip.motion_word) words.append(element("span", {}, `${clip.motion_word} motion`));
  if (clip.camera_move) words.append(element("span", {}, `camera: ${clip.camera_move}`));
  if (clip.duplicate_cluster) words.append(element("span", {}, "has duplicates"));
  if (clip.state && clip.state !== "kept") words.append(element("span", {}, clip.state + (clip.reject_reason ? `: ${commas(clip.reject_reason)}` : "")));
  if (words.childNodes.length) box.append(words);
  box.append(clip.caption ? element("p", { className: "caption" }, clip.caption) : element("p", { className: "caption is-none" }, "No caption."));
  if (!heading) box.append(scoreTable([clip], []));
  box.append(howLine(figure));
  return box;
}

function unitOf(score) {
  return score.unit.replace("^2", "²").replace(/^(about )?(\d+)-(\d+)$/, "$1$2 to $3");
}

function scoreTable(clips, names) {
  const table = element("table", { className: "scores" });
  if (names.length) table.append(element("tr", {}, element("th"), ...names.map((name) => element("th", { className: "n" }, name))));
  const scores = new Map(clips.flatMap((clip) => clip.scores.map((score) => [score.name, score])));
  for (const [name, score] of scores) {
    const values = clips.map((clip) => clip.scores.find((each) => each.name === name));
    table.append(element("tr", {},
      element("td", {}, score.label, score.unit ? element("small", {}, unitOf(score)) : null),
      ...values.map((each) => element("td", { className: "n" }, each ? number(each.value) : "–"))));
  }
  return scores.size ? table : "";
}

function howLine(figure) {
  const line = element("p", { className: "fine" });
  figure.made.then((how) => how && (line.textContent = `Shown: ${how}.`), () => {});
  return line;
}

// ---- judging

const SINGLE = [
  { name: "Drop", key: "D", keys: ["d", "arrowleft"], value: DROP, className: "drop", said: "dropped" },
  { name: "Skip", key: "S", keys: ["s", "arrowdown"], value: SKIP, className: "", said: "skipped" },
  { name: "Keep", key: "K", keys: ["k", "arrowright"], value: KEEP, className: "keep", said: "kept" },
];
const PAIR = [
  { name: "Left", key: "←", keys: ["arrowleft", "d"], value: 1, className: "keep", said: "left is better" },
  { name: "Tie", key: "T", keys: ["t", "arrowup"], value: TIE, className: "", said: "a tie" },
  { name: "Skip", key: "S", keys: ["s", "arrowdown"], value: SKIP, className: "", said: "skipped" },
  { name: "Right", key: "→", keys: ["arrowright", "k"], value: 0, className: "keep", said: "right is better" },
];
const ALSO = [
  { name: "Undo", key: "U", keys: ["u", "z", "backspace"], run: undo, id: "undo" },
  { name: "Replay", key: "R", keys: ["r"], run: replay },
  { name: "½ speed", key: "H", keys: ["h"], run: toggleSpeed, id: "half" },
];
const judgements = () => (facts.kind === "pair" ? PAIR : SINGLE);

// A button that was clicked gives the focus back: Space is to pause, not to press it again. From the keyboard it keeps it.
function pressed(run) {
  return (event) => {
    if (event.detail) event.currentTarget.blur();
    run();
  };
}

function drawActions() {
  const box = byId("actions");
  const button = (action, className) =>
    element("button", { type: "button", className, id: action.id ? `action-${action.id}` : "", onclick: pressed(() => (action.run ? action.run() : judge(action))) },
      action.name, element("kbd", { ariaHidden: "true" }, action.key));
  box.replaceChildren(
    ...judgements().map((action) => button(action, `action ${action.className}`)),
    element("span", { className: "apart" }),
    ...ALSO.map((action) => button(action, "action small")),
  );
}

function drawReview() {
  const stage = byId("stage"), beside = byId("beside");
  const current = items[0];
  stage.classList.toggle("is-pair", facts.kind === "pair");
  for (const figure of stage.querySelectorAll(".clip")) stop(figure);
  if (!current) {
    if (writing) return; // the answer that is under way says what comes
    stage.replaceChildren(ended());
    beside.replaceChildren(headBox());
  } else {
    const figures = current.map((clip) => viewOf(clip));
    figures.forEach((figure, place) => {
      figure.querySelector(".side")?.remove();
      if (current.length > 1) figure.prepend(element("span", { className: "side" }, place ? "Right" : "Left"));
    });
    stage.replaceChildren(...figures);
    figures.forEach(play);
    const names = current.length > 1 ? ["Left", "Right"] : [""];
    beside.replaceChildren(...current.map((clip, place) => describe(clip, figures[place], names[place])), current.length > 1 ? scoreTable(current, names) : "", headBox());
    beside.scrollTop = 0;
  }
  const wanted = new Set(items.flat().map((clip) => clip.clip_id));
  for (const clip of items.slice(1, 3).flat()) viewOf(clip); // loads while the one before is looked at
  for (const id of [...views.keys()]) if (!wanted.has(id)) { views.get(id).querySelector("video")?.removeAttribute("src"); views.delete(id); }
  for (const action of byId("actions").querySelectorAll(".action:not(.small)")) action.disabled = !current;
  byId("action-undo").disabled = !state.can_undo;
  byId("action-half").classList.toggle("is-on", half);
}

function ended() {
  const what = facts.kind === "pair" ? "Every pair is compared" : "Every clip is judged";
  return element("div", { className: "done" },
    element("h1", {}, what),
    element("p", {}, `${state.progress.done} of ${state.progress.total} for ${facts.where}. Press Ctrl-C in the terminal, and let the labels take effect:`),
    element("code", {}, facts.next_command));
}

function headBox() {
  const head = state.head, box = element("div", { className: "fine" });
  const spread = facts.order === "uncertain" || facts.order === "diverse";
  const until = head.check ? "" : ` until a model has ${head.needs} labels of both kinds to learn from`;
  const order = facts.order === "uncertain" && head.check ? "the least certain first" : spread ? `spread over motion, looks and duplicates${facts.order === "uncertain" ? until : ""}` : facts.order;
  box.append(element("p", {}, `Order: ${order}.`), element("p", {}, headWords(head)));
  return box;
}

function headWords(head, whole) {
  if (!head.check) return "";
  const check = head.check, percent = (share) => `${Math.round(100 * share)} %`;
  const names = head.reads.startsWith("scores: ") ? head.reads.slice(8).split(", ") : null;
  const reads = names && !whole ? `${names.length} scores` : head.reads.replace(/^scores: /, "");
  const learned = `The model has learned from ${count(head.labels, "label")}, reading ${reads}.`;
  if (check.why_not) return `${learned} How good it is cannot be told: ${check.why_not}.`;
  const parts = [];
  if (check.accuracy !== null) parts.push(`${percent(check.accuracy)} of ${count(check.labels, "label")} right (${percent(check.always)} by always giving the commoner answer)`);
  if (check.auc !== null) parts.push(`AUC ${check.auc.toFixed(2)}`);
  if (check.pairs_right !== null) parts.push(`${percent(check.pairs_right)} of ${count(check.pairs, "pair")} right`);
  return `${learned} On sources that it had not seen: ${parts.join(", ")}.`;
}

function drawProgress() {
  const { done, left, total, per_minute: rate, kept_share: share } = state.progress;
  const line = byId("progress");
  const parts = [[done, "done"], [left, "left"]];
  if (rate !== null) parts.push([rate >= 10 ? Math.round(rate) : rate.toFixed(1), "a minute"]);
  if (share !== null) parts.push([`${Math.round(100 * share)} %`, "kept"]);
  line.replaceChildren(...parts.flatMap(([value, words], place) => [place ? "   ·   " : "", element("b", {}, String(value)), ` ${words}`]));
  byId("bar").firstElementChild.style.width = `${total ? (100 * done) / total : 0}%`;
}

function take(answer) {
  state = answer;
  items = answer.items;
  drawProgress();
  drawReview();
}

function send(path, body, after) {
  writing += 1;
  writes = writes.then(async () => {
    try {
      const answer = await ask(path, body);
      writing -= 1;
      if (!writing) take(answer);
      after?.(answer);
    } catch (error) {
      writing -= 1;
      toast(error.message, true);
      await ask("/api/state").then(take, () => {});
    }
  });
}

function judge(action) {
  const current = items[0];
  if (!current || page() !== "review") return;
  const stage = byId("stage");
  const flash = action.value === KEEP ? "flash-keep" : action.value === DROP ? "flash-drop" : "";
  if (flash && facts.kind === "keep") {
    stage.classList.add(flash);
    setTimeout(() => stage.classList.remove(flash), 140);
  }
  toast(action.said);
  items = items.slice(1);
  if (facts.kind === "pair") send("/api/compare", { left: current[0].clip_id, right: current[1].clip_id, value: action.value });
  else send("/api/judge", { clip_id: current[0].clip_id, value: action.value });
  state.can_undo = true;
  drawReview();
}

function undo() {
  if (!state.can_undo) return;
  send("/api/undo", {}, (answer) => toast(answer.undone.length ? "taken back" : "nothing to take back"));
}

function currentVideos() {
  const box = byId("player").open ? byId("player") : byId("stage");
  return [...box.querySelectorAll("video")];
}

function replay() {
  for (const video of currentVideos()) { video.currentTime = 0; video.play().catch(() => {}); }
}

function toggleSpeed() {
  half = !half;
  for (const video of currentVideos()) video.playbackRate = half ? 0.5 : 1;
  byId("action-half")?.classList.toggle("is-on", half);
}

function togglePlay() {
  for (const video of currentVideos()) video.paused ? video.play().catch(() => {}) : video.pause();
}

// ---- browsing

const sheet = { clips: [], total: 0, at: -1 };
const SHEET_STEP = 60;

async function browse(more = false) {
  const question = { where: byId("where").value, order: byId("order").value, labelled: byId("labelled").value };
  const offset = more ? sheet.clips.length : 0;
  const asked = new URLSearchParams({ ...question, offset, limit: SHEET_STEP });
  const mistake = byId("mistake");
  try {
    const answer = await ask(`/api/browse?${asked}`);
    mistake.hidden = true;
    sheet.clips = more ? [...sheet.clips, ...answer.clips] : answer.clips;
    sheet.total = answer.total;
    const kept = Object.entries(question).filter(([name, value]) => value && !(name === "labelled" && value === "any"));
    history.replaceState(null, "", kept.length ? `/browse?${new URLSearchParams(kept)}` : "/browse");
  } catch (error) {
    mistake.textContent = error.message;
    mistake.hidden = false;
    return;
  }
  byId("found").textContent = `${sheet.total} ${sheet.total === 1 ? "clip" : "clips"}${sheet.clips.length < sheet.total ? `, ${sheet.clips.length} shown` : ""}`;
  byId("sheet").replaceChildren(...sheet.clips.map((clip, place) => tile(clip, () => openPlayer(place))));
  byId("more").hidden = sheet.clips.length >= sheet.total;
}

function badge(label) {
  if (!label) return null;
  const [words, className] = label.value === null ? ["skipped", ""] : label.value > 0.5 ? ["kept", "keep"] : ["dropped", "drop"];
  return element("span", { className: `badge ${className}` }, words);
}

function tile(clip, open, under) {
  const picture = element("span", { className: "picture" });
  const image = element("img", { src: `/thumb/${encodeURIComponent(clip.clip_id)}`, alt: "", loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(element("span", { className: "none" }, "no thumbnail")));
  const length = clip.media_type === "image" ? "image" : `${(clip.start_us / 1e6).toFixed(1)} – ${(clip.end_us / 1e6).toFixed(1)} s`;
  picture.append(image, ...[badge(clip.label)].filter(Boolean), element("span", { className: "length" }, length));
  const scores = clip.scores.slice(0, 3).map((score) => `${score.label.replace(/[,(].*/, "").trim().replace("aesthetic", "looks")} ${number(score.value)}`).join(" · ");
  const state_ = clip.state && clip.state !== "kept" ? `${clip.state}${clip.reject_reason ? `: ${commas(clip.reject_reason)}` : ""}` : clip.caption || "";
  return element("button", { type: "button", className: "tile", onclick: open, title: clip.caption || clip.name },
    picture, element("b", {}, clip.name), element("small", {}, scores), element("small", {}, under || state_));
}

function openPlayer(place) {
  sheet.at = place;
  drawPlayer(sheet.clips[place]);
  if (!byId("player").open) byId("player").showModal();
}

function drawPlayer(clip) {
  const box = byId("player"), figure = makeView(clip);
  box.querySelector(".player-stage").replaceChildren(figure);
  const actions = box.querySelector(".player-actions");
  actions.replaceChildren();
  for (const action of SINGLE)
    actions.append(element("button", { type: "button", className: `action ${action.className}`, onclick: pressed(() => judgeOpen(action)) }, action.name, element("kbd", { ariaHidden: "true" }, action.key)));
  const said = clip.label ? `You ${clip.label.value === null ? "skipped" : clip.label.value > 0.5 ? "kept" : "dropped"} it.` : "You have not judged it.";
  const guess = clip.chance === null ? "" : ` The model expects a keep with ${Math.round(100 * clip.chance)} %.`;
  box.querySelector(".player-beside").replaceChildren(describe(clip, figure), element("p", { className: "fine" }, said + guess));
  const step = (to, name) => element("button", { type: "button", className: "action small", disabled: to < 0 || to >= sheet.clips.length, onclick: pressed(() => openPlayer(to)) }, name);
  actions.append(element("span", { className: "apart" }), step(sheet.at - 1, "← Previous"), step(sheet.at + 1, "Next →"), element("button", { type: "button", className: "action small", onclick: () => box.close() }, "Close"));
}

function judgeOpen(action) {
  const clip = sheet.clips[sheet.at];
  send("/api/judge", { clip_id: clip.clip_id, value: action.value }, () => {
    clip.label = { value: action.value };
    byId("sheet").children[sheet.at]?.replaceWith(tile(clip, openPlayer.bind(null, sheet.at)));
    if (byId("player").open && sheet.clips[sheet.at] === clip) drawPlayer(clip);
    toast(action.said);
  });
}

byId("player").addEventListener("close", () => byId("player").querySelector(".player-stage").replaceChildren());
byId("player").addEventListener("click", (event) => event.target === byId("player") && byId("player").close());
byId("help").addEventListener("click", (event) => event.target === byId("help") && byId("help").close());
byId("question").addEventListener("submit", (event) => { event.preventDefault(); browse(); });
byId("labelled").addEventListener("change", () => browse());
byId("more").addEventListener("click", () => browse(true));

function drawColumns() {
  const rows = facts.columns.filter((column) => !column.name.endsWith("_run"));
  byId("columns").querySelector("table").replaceChildren(
    ...rows.map((column) => element("tr", {}, element("td", {}, column.name), element("td", {}, column.unit ? `${column.about} (${column.unit})` : column.about))));
  byId("orders").replaceChildren(...rows.flatMap((column) => [element("option", { value: `-${column.name}` }), element("option", { value: column.name })]));
}

// ---- summary

async function summarise() {
  const box = byId("summary");
  let found;
  try {
    found = await ask("/api/summary");
  } catch (error) {
    box.replaceChildren(element("p", {}, error.message));
    return;
  }
  const { subset } = found;
  const figure = (value, words) => element("div", {}, element("b", {}, String(value)), element("span", {}, words));
  const parts = [
    element("h2", {}, "Preference subset"),
    element("div", { className: "figures" }, figure(subset.chosen, `kept clips chosen, of ${subset.size.toLocaleString("en")} wanted`), figure(found.clips, "clips judged"), figure(found.disputes.length, "disputed")),
    element("p", { className: "about" }, "Chosen: clips that the policy keeps and that most of their annotators keep."
      + (subset.not_kept ? ` ${subset.not_kept} more ${subset.not_kept === 1 ? "is" : "are"} chosen by people and turned away by the policy.` : "")),
    element("h2", {}, "Annotators"),
    list(["name", "kept", "dropped", "skipped", "compared", "last label"],
      found.annotators.map((each) => [each.name, each.kept, each.dropped, each.skipped, each.compared, new Date(each.last).toLocaleString()]), "Nobody has labelled a clip."),
    element("h2", {}, "Agreement"),
    list(["annotators", "clips in common", "agree", "Cohen's kappa"],
      found.agreements.map((each) => [each.names.join(" and "), each.clips, `${Math.round(100 * each.share)} %`, each.kappa === null ? "–" : each.kappa.toFixed(2)]), "No clip was kept or dropped by two annotators."),
    found.agreements.length ? element("p", { className: "about" }, "Kappa is agreement beyond chance: 1 always, 0 as often as their shares of keeps would by chance.") : "",
    element("h2", {}, "Model"),
    element("p", { className: "about" }, headWords(found.head, true) || `None yet: it wants ${found.head.needs} labels of both kinds (or comparisons).`),
  ];
  if (found.disputes.length) {
    sheet.clips = found.disputes.map((each) => each.clip).filter(Boolean);
    const tiles = found.disputes.filter((each) => each.clip).map((each, place) => tile(each.clip, () => openPlayer(place), `keep: ${each.keep.join(", ")}; drop: ${each.drop.join(", ")}`));
    parts.push(element("h2", {}, "Disputed clips"), element("div", { className: "disputes" }, ...tiles));
  }
  parts.push(element("h2", {}, "So that it takes effect"), element("code", {}, found.next_command));
  box.replaceChildren(...parts);
}

function list(names, rows, none) {
  if (!rows.length) return element("p", { className: "about" }, none);
  const cell = (tag) => (value, place) => element(tag, { className: place && names[place] !== "last label" ? "n" : "" }, String(value));
  const table = element("table", { className: "list" }, element("tr", {}, ...names.map(cell("th"))), ...rows.map((row) => element("tr", {}, ...row.map(cell("td")))));
  return element("div", { className: "scroll" }, table);
}

// ---- the whole page

function page() {
  return { "/browse": "browse", "/summary": "summary" }[location.pathname] || "review";
}

function show() {
  const name = page();
  document.body.dataset.page = name;
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · flashvideo`;
  for (const each of ["review", "browse", "summary"]) byId(each).hidden = each !== name;
  for (const link of document.querySelectorAll("nav a")) link.dataset.page === name ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  if (name === "review") ask("/api/state").then(take, (error) => toast(error.message, true));
  else for (const figure of byId("stage").querySelectorAll(".clip")) stop(figure);
  if (name === "browse") {
    const asked = new URLSearchParams(location.search);
    byId("where").value = asked.get("where") ?? "";
    byId("order").value = asked.get("order") ?? "";
    byId("labelled").value = asked.get("labelled") ?? "any";
    browse();
  }
  if (name === "summary") summarise();
}

for (const link of document.querySelectorAll("nav a"))
  link.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", link.getAttribute("href"));
    show();
  });
addEventListener("popstate", show);

function showHelp() {
  const line = (action) => element("tr", {}, element("td", {}, ...action.keys.map((key) => element("kbd", {}, key.replace("arrow", "").replace("left", "←").replace("right", "→").replace("down", "↓").replace("up", "↑")))), element("td", {}, action.name));
  const more = [{ name: "Play or pause", keys: ["space"] }, { name: "This list", keys: ["?"] }];
  const close = element("button", { type: "button", className: "ok", onclick: () => byId("help").close() }, "Close");
  byId("help").replaceChildren(element("h1", {}, "Keys"), element("table", {}, ...[...judgements(), ...ALSO, ...more].map(line)), close);
  byId("help").showModal();
}
byId("help-button").addEventListener("click", showHelp);

addEventListener("keydown", (event) => {
  if (event.key === " " && event.target.closest("button, summary, a")) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea") || byId("help").open || !facts) return;
  const key = event.key.toLowerCase();
  if (key === "?") return showHelp();
  const inPlayer = byId("player").open;
  if (!inPlayer && page() !== "review") return;
  let run = null;
  if (key === " ") run = togglePlay;
  else if (inPlayer && key.startsWith("arrow")) {
    const to = sheet.at + (key === "arrowright" ? 1 : key === "arrowleft" ? -1 : 0);
    run = () => to >= 0 && to < sheet.clips.length && openPlayer(to);
  } else {
    const also = ALSO.find((action) => action.keys.includes(key));
    const action = (inPlayer ? SINGLE : judgements()).find((each) => each.keys.includes(key));
    if (also && !(inPlayer && also.run === undo)) run = also.run;
    else if (action) run = () => (inPlayer ? judgeOpen(action) : judge(action));
  }
  if (!run) return;
  event.preventDefault();
  if (!event.repeat) run();
});

const THEMES = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };
function setTheme(name) {
  const dark = name === "dark" || (name === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = THEMES[name];
  byId("theme").dataset.name = name;
}
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES), next = names[(names.indexOf(byId("theme").dataset.name) + 1) % names.length];
  localStorage.setItem("review-theme", next);
  setTheme(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(byId("theme").dataset.name));
setTheme(THEMES[localStorage.getItem("review-theme")] ? localStorage.getItem("review-theme") : "auto");

ask("/api/facts").then((answer) => {
  facts = answer;
  byId("annotator").textContent = facts.annotator;
  drawActions();
  drawColumns();
  show();
}, (error) => toast(error.message, true));
