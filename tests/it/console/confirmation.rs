//! Confirmation of passkeys at the front door: the enrolment's answer, the Approvers page, the commands, and the broker's host.

use std::path::Path;

use super::*;
use crate::support::TestEnvironment;

/// An approver without a registered key; with `alone`, olga alone has one.
fn environment(alone: bool) -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let rows: Vec<String> = ["dana", "maria", "lee"]
        .map(|name| env.own_key(name).row(name))
        .into();
    let people = env.policy.get_mut("people.toml").expect("people");
    for row in rows.iter().filter(|_| alone) {
        assert!(people.contains(row));
        *people = people.replace(row, "");
    }
    people.push_str(
        "\n[[person]]\nid = \"yan\"\nname = \"Yan Yi\"\ngroups = [\"security\"]\nroles = [\"approver\"]\n",
    );
    env
}

/// Runs a command: exit code, stdout, stderr.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
        .args(args)
        .current_dir(dir)
        .env_remove("DIPYLON_URL")
        .env("HOME", dir)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let code = out.status.code().expect("ended");
    (code, text(out.stdout), text(out.stderr))
}

/// A directory with people's keys and the configuration of a broker.
fn site(s: &ServedBroker) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("dir");
    let write = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).expect("chmod");
    };
    for name in ["olga", "maria"] {
        write(&format!("{name}.pem"), &s.env.pem_of(name));
    }
    write("trust.json", &s.env.trust_bundle());
    let config = format!(
        "realm = \"test\"\nlisten = \"{}\"\nexternal_url = \"{}\"\ndata_dir = \"{}\"\nkey_dir = \"keys\"\n\n\
         [[trust_domain]]\nname = \"soc.example\"\nbundle = \"trust.json\"\n",
        s.url.trim_start_matches("http://"),
        s.url,
        s.dir.display()
    );
    write("dipylon.toml", &config);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&s.dir, mode).expect("chmod");
    dir
}

/// What the broker answers to an enrolment of a person.
async fn enrolled(s: &ServedBroker, name: &str) -> Value {
    let code = invite(s, name).await;
    let browser = HttpBrowser::new(s);
    let begun = browser
        .post("/console/enrol/begin", &json!({ "code": code }))
        .await;
    let begun = begun.ok().json();
    let (_, made) = SoftwareAuthenticator::create(
        begun["rp_id"].as_str().expect("rp id"),
        &browser.origin,
        &decode_base64url(&begun["challenge"]),
        &decode_base64url(&begun["user"]),
    );
    let finish = json!({
        "code": code,
        "label": "phone",
        "client_data_json": URL_SAFE_NO_PAD.encode(&made.client_data_json),
        "attestation_object": URL_SAFE_NO_PAD.encode(&made.attestation_object),
    });
    browser
        .post("/console/enrol/finish", &finish)
        .await
        .ok()
        .json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newcomer_reads_a_code_out_and_another_person_enters_it() {
    let s = ServedBroker::start_in(environment(false)).await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let answer = enrolled(&s, "yan").await;
    assert_eq!(answer["confirmers"], json!(["dana", "lee", "maria"]));
    let code = answer["confirmation_code"]
        .as_str()
        .expect("a code")
        .to_owned();
    let page = maria.browser.get("/console/approvers").await.ok().body;
    assert!(page.contains("Passkeys that await confirmation"), "{page}");
    assert!(page.contains("on an invitation of olga"), "{page}");
    assert!(
        page.contains("action=\"/console/approvers/yan/confirm\""),
        "{page}"
    );
    assert!(!page.contains(&code), "the person reads it out");
    let submit = async |path: &str, body: &str| {
        let headers = [
            ("origin", maria.browser.origin.as_str()),
            ("content-type", "application/x-www-form-urlencoded"),
        ];
        maria.browser.send("POST", path, &headers, body).await
    };
    let confirm = "/console/approvers/yan/confirm";
    for (path, body, status) in [
        (confirm, "code=0000-0000-0000", 404),
        (confirm, "code=x", 400),
        (confirm, "", 400),
        (confirm, "code=a&code=b", 400),
        (confirm, "code=0000-0000-0000&more=x", 400),
        (
            "/console/approvers/nobody/confirm",
            "code=0000-0000-0000",
            404,
        ),
    ] {
        assert_eq!(submit(path, body).await.status, status, "{path} {body}");
    }
    let typed = code.to_lowercase().replace('-', "+");
    let done = submit(confirm, &format!("code={typed}")).await;
    assert_eq!(
        (done.status, done.header("location")),
        (303, Some("/console/approvers?confirmed=yan"))
    );
    let page = maria
        .browser
        .get("/console/approvers?confirmed=yan")
        .await
        .ok()
        .body;
    assert!(page.contains("The passkey of yan is confirmed"), "{page}");
    assert!(page.contains("confirmed by maria"), "{page}");
    assert!(!page.contains("await confirmation"), "{page}");
    assert_eq!(submit(confirm, &format!("code={typed}")).await.status, 409);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_confirm_and_say_what_awaits() {
    let s = ServedBroker::start_in(environment(false)).await;
    let site = site(&s);
    let with_key = |key: &str, args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--url", &s.url, "--key", key]);
        run(site.path(), &all)
    };
    let answer = enrolled(&s, "yan").await;
    let code = answer["confirmation_code"].as_str().expect("a code");
    let (_, list, _) = with_key("olga.pem", &["approver", "list"]);
    assert!(
        list.contains("passkey \"phone\", not confirmed (invited by olga)"),
        "{list}"
    );
    let (status, out, _) = run(site.path(), &["doctor", "--config", "dipylon.toml"]);
    assert!(
        out.contains("[warn] the passkey ") && out.contains("dipylon approver confirm yan CODE"),
        "{status}: {out}"
    );
    let confirm = ["approver", "confirm", "yan", code];
    let (status, _, stderr) = with_key("olga.pem", &confirm);
    assert!(
        status != 0 && stderr.contains("NOT_ANOTHER_HAND"),
        "{status}: {stderr}"
    );
    let (status, _, stderr) = with_key(
        "maria.pem",
        &["approver", "confirm", "yan", "0000-0000-0000"],
    );
    assert!(
        status == 1 && stderr.contains("ask yan to read the code out again"),
        "{status}: {stderr}"
    );
    let (status, out, stderr) = with_key("maria.pem", &confirm);
    assert!(
        status == 0 && out.contains("of yan is confirmed"),
        "{status}: {out}{stderr}"
    );
    let (status, _, stderr) = with_key("maria.pem", &confirm);
    assert!(
        status != 0 && stderr.contains("NOT_CONFIRMABLE"),
        "{status}: {stderr}"
    );
    let (_, list, _) = with_key("olga.pem", &["approver", "list", "--json"]);
    assert!(
        list.contains("\"confirmed_by\":\"maria\"") || list.contains("\"confirmed_by\": \"maria\""),
        "{list}"
    );
}

/// Where one person alone has keys, the host's owner confirms, in an entry that says so; nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_confirms_where_no_other_person_can() {
    let s = ServedBroker::start_in(environment(true)).await;
    let site = site(&s);
    let answer = enrolled(&s, "yan").await;
    assert_eq!(answer["confirmers"], json!([]));
    let code = answer["confirmation_code"]
        .as_str()
        .expect("a code")
        .to_owned();
    let confirm = |passkey: &str| {
        let args = [
            "approver",
            "confirm-on-host",
            "--config",
            "dipylon.toml",
            "yan",
            passkey,
        ];
        run(site.path(), &args)
    };
    let (status, _, stderr) = confirm(&code);
    assert!(
        status == 1 && stderr.contains("is running"),
        "{status}: {stderr}"
    );
    let s = s
        .restart_after(async |_, _| {
            let (status, _, stderr) = confirm("0000-0000-0000");
            assert!(
                status == 1 && stderr.contains("yan has no passkey"),
                "{status}: {stderr}"
            );
            let (status, out, stderr) = confirm(&code);
            assert!(
                status == 0 && out.contains("of yan is confirmed by entry"),
                "{status}: {out}{stderr}"
            );
            let (status, _, stderr) = confirm(&code);
            assert!(
                status == 1 && stderr.contains("was confirmed at"),
                "{status}: {stderr}"
            );
        })
        .await;
    let yan = s.broker.show().person(&PersonId::parse("yan").expect("id"));
    let by = yan.passkeys[0]
        .confirmation
        .as_ref()
        .expect("confirmed")
        .by
        .to_string();
    assert!(by.starts_with("the host: ") && by.contains("uid "), "{by}");
    // Yan's passkey counts now: what olga invites, yan confirms.
    let answer = enrolled(&s, "maria").await;
    assert_eq!(answer["confirmers"], json!(["yan"]));
    let code = answer["confirmation_code"]
        .as_str()
        .expect("a code")
        .to_owned();
    let s = s
        .restart_after(async |_, _| {
            let args = [
                "approver",
                "confirm-on-host",
                "--config",
                "dipylon.toml",
                "maria",
                &code,
            ];
            let (status, _, stderr) = run(site.path(), &args);
            assert!(
                status == 1 && stderr.contains("people can confirm it: yan"),
                "{status}: {stderr}"
            );
        })
        .await;
    let maria = s
        .broker
        .show()
        .person(&PersonId::parse("maria").expect("id"));
    assert!(maria.passkeys[0].confirmation.is_none());
    crate::support::invariants::check(&s.dir);
}
