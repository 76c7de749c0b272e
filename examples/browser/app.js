/*
 * A page of your own: streaming text and a stop button, on netra-ws.js and nothing else.
 *
 *   1. python -m netra_ws                                    prints a login URL that carries a token
 *   2. python -m http.server 8080 --directory examples/browser --bind 127.0.0.1
 *   3. open http://127.0.0.1:8080/ and fill in the server and a token (python -m netra_ws token --user ada),
 *      or give both in the fragment, which never leaves the browser: …:8080/#server=http://127.0.0.1:8000&token=eyJ…
 *
 * The client is loaded from the server itself, so the two always fit together. In development any loopback origin
 * may connect; elsewhere the origin of this page must stand in the setting `origins.allowed`.
 */

const $ = (id) => document.getElementById(id);
let session = null;
let run = null;

async function open(server, token) {
  $("state").textContent = "Connecting…";
  const { connect } = await import(new URL("/netra-ws.js", server).href);
  await session?.close();
  session = connect(server, { token, onState: show });
}

function show({ state, reason, delayMs, welcome }) {
  const words = {
    connecting: "Connecting…",
    open: `Connected as ${welcome?.user_id}`,
    waiting: `No connection (${reason}), next attempt in ${Math.ceil(delayMs / 1000)} s`,
    closed: `Closed: ${reason}`,
  };
  $("state").textContent = words[state];
  $("ask").hidden = $("answer").hidden = state === "closed";
}

async function ask(question) {
  const { messageText } = await import(new URL("/netra-ws.js", $("server").value).href);
  const texts = new Map(); // one for each message of the run
  $("answer").textContent = "";
  $("send").disabled = true;
  try {
    run = await session.start(question);
    $("stop").disabled = false;
    for await (const event of run.events) {
      if (event.type !== "agent_message") continue;
      texts.set(event.message_id, messageText(texts.get(event.message_id) ?? "", event));
      $("answer").textContent = [...texts.values()].join("\n\n"); // text, never markup
    }
    const { status, error } = await run.result;
    if (status !== "success") $("answer").append(`\n[${error?.message ?? status}]`);
  } catch (error) {
    $("answer").append(`\n[${error.message}]`);
  } finally {
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

$("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  open($("server").value, $("token").value).catch((error) => ($("state").textContent = `No client: ${error.message}`));
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("question").value);
});
$("stop").addEventListener("click", () => {
  $("stop").disabled = true;
  run.stop().catch((error) => $("answer").append(`\n[${error.message}]`));
});

const given = new URLSearchParams(location.hash.slice(1));
if (given.get("server")) $("server").value = given.get("server");
if (given.get("token")) {
  $("token").value = given.get("token");
  history.replaceState(null, "", location.pathname);
  $("connect").requestSubmit();
}
