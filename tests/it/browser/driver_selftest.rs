//! Self-test of the WebDriver client on pages that have nothing to do with the console.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon_sdk::model::Digest;
use serde_json::{Value, json};

use super::attacker_site::AttackerSite;
use super::driver::{Browser, Viewport, is_skipped, keys};

/// Creates a passkey for `localhost` and signs in with it; binary values are base64url.
const MAKE: &str = "
    const b64 = (b) => btoa(String.fromCharCode(...new Uint8Array(b))).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
    const made = await navigator.credentials.create({ publicKey: {
        rp: { id: 'localhost', name: 'proof' }, user: { id: new Uint8Array(16), name: 'maria', displayName: 'Maria' },
        challenge: new Uint8Array(32), pubKeyCredParams: [{ type: 'public-key', alg: -7 }],
        authenticatorSelection: { residentKey: 'required', userVerification: 'required' },
    } });
    return { id: made.id, client: b64(made.response.clientDataJSON), attestation: b64(made.response.attestationObject) };";

const USE: &str = "
    const b64 = (b) => btoa(String.fromCharCode(...new Uint8Array(b))).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
    const shown = await navigator.credentials.get({ publicKey: {
        rpId: 'localhost', challenge: new Uint8Array(32).fill(7), userVerification: args[0],
    } });
    return { id: shown.id, client: b64(shown.response.clientDataJSON), data: b64(shown.response.authenticatorData) };";

fn bytes(value: &Value) -> Vec<u8> {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("not text: {value}"));
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

#[tokio::test]
async fn virtual_authenticator_creates_and_signs() {
    if is_skipped() {
        return;
    }
    let attacker = AttackerSite::serve().await;
    attacker.put("/", "<button id=b>press</button><input id=i>");
    let browser = Browser::open(Viewport::DESK).await;
    browser.navigate(&attacker.same_site_url("/")).await;

    let made = browser.run(MAKE, json!([])).await;
    let client: Value = serde_json::from_slice(&bytes(&made["client"])).expect("JSON");
    assert_eq!(client["type"], "webauthn.create");
    assert_eq!(
        client["origin"],
        attacker.same_site_url("").trim_end_matches('/')
    );
    let kept = browser.passkeys().await;
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["rpId"], "localhost");

    let shown = browser.run(USE, json!(["required"])).await;
    assert_eq!(shown["id"], made["id"]);
    let data = bytes(&shown["data"]);
    assert_eq!(data[..32], *Digest::sha256(b"localhost").as_bytes());
    assert_eq!(data[32] & 0b101, 0b101, "user present and verified");

    // An authenticator that does not verify its user: the browser refuses where verification is required; elsewhere the flag
    // is missing.
    browser.recognises(false).await;
    let refused = browser.run(USE, json!(["required"])).await;
    assert_eq!(refused["error"], "NotAllowedError");
    let unverified = browser.run(USE, json!(["discouraged"])).await;
    assert_eq!(bytes(&unverified["data"])[32] & 0b101, 0b001);
    browser.recognises(true).await;

    browser.forget_passkeys().await;
    let refused = browser.run(USE, json!(["required"])).await;
    assert_eq!(refused["error"], "NotAllowedError");
    browser.copy_in(&kept[0]).await;
    let again = browser.run(USE, json!(["required"])).await;
    assert_eq!(again["id"], made["id"]);
}

#[tokio::test]
async fn viewport_scripts_and_colour_scheme() {
    if is_skipped() {
        return;
    }
    let attacker = AttackerSite::serve().await;
    attacker.put(
        "/",
        "<meta name=viewport content='width=device-width'><p id=p>before</p><button id=b>press</button><input id=i><div style='height:3000px'></div>
         <script>b.onclick = () => setTimeout(() => p.textContent = 'pressed ' + i.value, 50)</script>",
    );
    let looks = [
        Viewport {
            dark: true,
            ..Viewport::PHONE
        },
        Viewport {
            scripts: false,
            ..Viewport::DESK
        },
    ];
    let [phone, still] = Browser::open_together(looks).await;
    for browser in [&phone, &still] {
        browser.navigate(&attacker.foreign_url("/")).await;
        browser.wait("#i").await.type_in("twice").await;
        browser.wait("#b").await.click().await;
    }
    phone
        .wait_for_script("document.querySelector('#p').textContent === 'pressed twice'")
        .await;
    let seen =
        "return [innerWidth, innerHeight, matchMedia('(prefers-color-scheme: dark)').matches]";
    assert_eq!(phone.script(seen, json!([])).await, json!([390, 844, true]));
    phone.wait("#i").await.clear().await;
    phone
        .script("document.querySelector('#b').focus()", json!([]))
        .await;
    phone.press(keys::TAB).await;
    assert_eq!(phone.focus().await, "i");
    phone.press("ab").await;
    let typed = phone.wait("#i").await.property("value").await;
    assert_eq!(typed, "ab");

    let size = |png: &[u8]| {
        assert_eq!(&png[1..4], b"PNG");
        let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().expect("four"));
        (number(16), number(20))
    };
    assert_eq!(size(&phone.screenshot().await), (390, 844));
    let (width, height) = size(&phone.whole_page().await);
    assert!(width == 390 && height > 3_000, "{width} x {height}");

    assert_eq!(still.wait("#p").await.text().await, "before");
}

/// Dropping the browser ends both processes.
#[tokio::test]
async fn dropped_browser_leaves_no_process() {
    if is_skipped() {
        return;
    }
    let browser = Browser::open(Viewport::DESK).await;
    let profile = browser.profile();
    assert!(!super::driver::processes_of(&profile).is_empty());
    drop(browser);
    for _ in 0..1_000 {
        if super::driver::processes_of(&profile).is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("still there: {:?}", super::driver::processes_of(&profile));
}
