//! WebAuthn ceremonies run by injected scripts, for requests that the console's own script never makes.

use serde_json::{Value, json};

use super::driver::Browser;

/// Shared script functions: base64url both ways, and a POST as the console's pages make it.
const COMMON: &str = "
    const text = (b) => btoa(String.fromCharCode(...new Uint8Array(b))).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
    const bytes = (t) => Uint8Array.from(atob(t.replaceAll('-', '+').replaceAll('_', '/')), (c) => c.charCodeAt(0));
    const shownOn = async (card) => {
        const page = new DOMParser().parseFromString(await (await fetch(card)).text(), 'text/html');
        const row = (name) => page.querySelector(`[data-row=${name}] bdi`)?.textContent;
        return { policy: row('policy'), facts: row('facts') };
    };
    const post = async (path, body) => {
        const card = path.replace(/\\/vote\\/begin$/, '');
        if (card !== path && !('policy' in body)) Object.assign(body, await shownOn(card));
        const answer = await fetch(path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
        return { status: answer.status, body: await answer.json().catch(() => null) };
    };
    const assertion = async (challenge, rpId, userVerification) => {
        const made = await navigator.credentials.get({ publicKey: { challenge: bytes(challenge), rpId, userVerification } });
        return {
            credential: text(made.rawId), authenticator_data: text(made.response.authenticatorData),
            client_data_json: text(made.response.clientDataJSON), signature: text(made.response.signature),
            user: made.response.userHandle ? text(made.response.userHandle) : null,
        };
    };
";

/// Posts JSON from the current page, with its cookies: `{status, body}`.
pub async fn post(browser: &Browser, path: &str, body: Value) -> Value {
    let script = format!("{COMMON} return await post(args[0], args[1]);");
    browser.run(&script, json!([path, body])).await
}

/// Signs a challenge on the current page.
pub async fn sign(browser: &Browser, challenge: &Value, verification: &str) -> Value {
    let script = format!("{COMMON} return await assertion(args[0], 'localhost', args[1]);");
    browser.run(&script, json!([challenge, verification])).await
}

/// A statement with its signature, as `CastVote` takes it.
pub fn cast(begun: &Value, signed: &Value) -> Value {
    let mut cast = signed.clone();
    cast["statement"] = begun["body"]["statement"].clone();
    cast
}

/// Records the page's requests from now on, for [`sent`].
pub async fn listen(browser: &Browser) {
    let script = "
        const plain = window.fetch;
        window.sent = [];
        window.fetch = (path, order) => { window.sent.push([String(path), order && order.body]); return plain(path, order); };";
    browser.script(script, json!([])).await;
}

/// The last body sent to a path with this suffix.
pub async fn sent(browser: &Browser, end: &str) -> Value {
    let script = "return window.sent.filter(([path]) => path.endsWith(arguments[0])).pop()[1]";
    let body = browser.script(script, json!([end])).await;
    serde_json::from_str(body.as_str().expect("a body")).expect("JSON")
}
