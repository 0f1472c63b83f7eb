//! `dipylon doctor`: the checks of a deployment, online and offline.

use std::io::{Read as _, Write as _};

use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::SigningKey;

use crate::support::certificate_authority::Authority;
use crate::support::cli_deployment::CliDeployment;

#[test]
fn doctor_checks_online_and_offline() {
    let site = CliDeployment::new();
    let doctor = || site.run(&["doctor", "--config", "dipylon.toml"]);
    let has = |out: &str, level: &str, expected: &str| {
        let found = out
            .lines()
            .any(|line| line.trim_start().starts_with(level) && line.contains(expected));
        assert!(found, "{level} {expected}\n{out}");
    };
    // Before the first start.
    let (code, out, stderr) = doctor();
    assert_eq!(code, 0, "{out}{stderr}");
    has(&out, "[ok]", "none yet: the first start creates it");
    has(&out, "[warn]", "no policy bundle: every request is denied");
    has(&out, "[ok]", "is free: no broker is running");

    // RunningBroker, and not yet in service.
    let running = site.serve();
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "not ready: no policy bundle is in force");
    has(&out, "[ok]", "is served by the broker of this journal");

    // With a policy in force.
    let code = running.code().expect("printed");
    let apply = [
        "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem", "--code", &code,
    ];
    assert_eq!(site.run(&apply).0, 0);
    let (code, out, _) = doctor();
    assert_eq!(code, 0, "{out}");
    for expected in [
        "responds and is ready",
        "clocks agree",
        "verified: ",
        "policy bundle in force",
        "0 days old",
        "matches the listen address",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (code, out, _) = site.run(&["doctor", "--url", &site.url, "--key", "maria.pem"]);
    assert_eq!(code, 0, "{out}");
    has(
        &out,
        "[ok]",
        "the key is registered; 0 access requests are waiting",
    );
    site.write(
        "stranger.pem",
        SigningKey::to_pem(&SigningKey::generate().expect("key").1).as_str(),
    );
    site.mode("stranger.pem", 0o600);
    let (code, out, _) = site.run(&["doctor", "--url", &site.url, "--key", "stranger.pem"]);
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "NOT_AUTHENTICATED");

    // Stopped: the offline checks still work; then each bad state in turn.
    drop(running);
    let (code, out, _) = doctor();
    assert_eq!(code, 0, "{out}");
    has(&out, "[ok]", "is free: no broker is running");
    has(&out, "[ok]", "verified: ");

    let other = std::net::TcpListener::bind(("127.0.0.1", site.port)).expect("free");
    let answering = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = other.accept().expect("asked");
            let _read = std::io::Read::read(&mut stream, &mut [0; 1024]);
            let date = "Sun, 06 Nov 1994 08:49:37 GMT";
            let answer =
                format!("HTTP/1.1 200 OK\r\ndate: {date}\r\ncontent-length: 2\r\n\r\n{{}}");
            std::io::Write::write_all(&mut stream, answer.as_bytes()).expect("answered");
        }
    });
    let (code, out, _) = doctor();
    answering.join().expect("two requests");
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "is in use by another process");
    has(&out, "[fail]", "clocks: ");

    site.mode("keys", 0o755);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "mode 755 gives other users access");
    site.mode("keys", 0o700);

    let good = site.config();
    let elsewhere = good.replace(
        &format!("external_url = \"{}\"", site.url),
        "external_url = \"http://127.0.0.1:9\"",
    );
    site.write("dipylon.toml", &elsewhere);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "does not match the listen address");
    site.write("dipylon.toml", &good);

    // A changed entry.
    let db = rusqlite::Connection::open(site.path("data/journal.db")).expect("opens");
    let changed = db.execute(
        "UPDATE entries SET entry = replace(entry, '1', '2') WHERE idx = 1",
        [],
    );
    assert_eq!(changed.expect("changed"), 1);
    drop(db);
    let (code, out, _) = doctor();
    assert_eq!(code, 1, "{out}");
    has(&out, "[fail]", "journal verification failed");
}

#[test]
fn doctor_counts_eligible_approvers() {
    let site = CliDeployment::new();
    site.write(
        "dipylon.toml",
        &format!("policy = \"policy\"\n{}", site.config()),
    );
    // Only the owner is left to approve; and a profile that no rule uses.
    let people = site.env.policy["people.toml"].clone();
    let mut kept = String::new();
    for block in people.split("\n[[") {
        let whose = ["of = \"maria\"", "of = \"lee\""];
        let cut = block.starts_with("key]]") && whose.iter().any(|of| block.contains(of));
        if !cut {
            kept.push_str(if kept.is_empty() { "" } else { "\n[[" });
            kept.push_str(block);
        }
    }
    kept.push_str("\n[profile.idle]\ngroup = \"security\"\nwait = \"5m\"\ngood_for = \"5m\"\nmethod = \"key\"\n");
    site.write("policy/people.toml", &kept);
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    assert!(
        out.contains("profile idle: no request of any agent asks for it"),
        "{out}"
    );
    assert!(out.contains("too few are eligible for"), "{out}");

    // With many agents the first few are named.
    let mut agents = site.env.policy["agents.toml"].clone();
    for n in 0..30 {
        agents.push_str(&format!(
            "\n[[agent]]\nid = \"more-{n:02}\"\nspiffe_id = \"spiffe://soc.example/agent/more-{n}\"\nowner = \"dana\"\n\
             environment = \"prod\"\nmodel = \"m\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\nactions = [\"account.disable\"]\n"
        ));
    }
    site.write("policy/agents.toml", &agents);
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    let line = out
        .lines()
        .find(|line| line.contains("too few are eligible for") && line.contains("more-00 (0)"));
    let line = line.unwrap_or_else(|| panic!("no warning: {out}"));
    assert!(!line.contains("more-29"), "{line}");
    assert!(line.contains(" more agents"), "{line}");
}

#[test]
fn doctor_compares_the_files_with_what_is_in_force() {
    let site = CliDeployment::new();
    site.write(
        "dipylon.toml",
        &format!("policy = \"policy\"\n{}", site.config()),
    );
    let _running = site.serve();
    let doctor = |more: &[&str]| {
        let (code, out, error) =
            site.run(&[&["doctor", "--config", "dipylon.toml"], more].concat());
        (code, format!("{out}{error}"))
    };
    let (code, out) = doctor(&["--key", "maria.pem", "--stream-for", "1s"]);
    assert_eq!(code, 0, "{out}");
    for expected in [
        "over HTTP/2",
        "lasted 1 s",
        "the key is registered; 0 access requests are waiting",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    assert!(!out.contains("is not the one in force"), "{out}");
    let other = crate::support::TestEnvironment::new();
    site.write("trust.json", &other.trust_bundle());
    let (_, out) = doctor(&[]);
    assert!(out.contains("trust.json is not the one in force"), "{out}");
}

#[test]
fn doctor_checks_tls_certificate() {
    let site = CliDeployment::new();
    let authority = Authority::new();
    let put = |days: i64| {
        let now = Clock::system().now().secs();
        let (certificate, key) = authority.certify_with(|params| {
            let at = |s| time::OffsetDateTime::from_unix_timestamp(s).expect("moment");
            params.not_before = at(now - 90 * 86_400);
            params.not_after = at(now + days * 86_400 + 3_600);
        });
        site.write("tls.crt", &certificate);
        site.write("tls.key", &key);
        site.mode("tls.key", 0o600);
        certificate
    };
    let config = site
        .config()
        .replace("external_url = \"http:", "external_url = \"https:");
    site.write(
        "dipylon.toml",
        &format!("{config}[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n"),
    );
    site.write("ca.pem", &authority.pem);
    let check = || site.run(&["config", "check", "dipylon.toml"]);
    for (days, code, mark) in [
        (90, 0, "[ok]   certificate"),
        (3, 0, "[warn] certificate"),
        (-1, 1, "[fail] certificate"),
    ] {
        put(days);
        let (found, out, _) = check();
        assert_eq!((found, out.contains(mark)), (code, true), "{days}: {out}");
    }
    // An expired certificate, or a clock ahead of it, must not take the Unix socket away too.
    let config = std::fs::read_to_string(site.path("dipylon.toml")).expect("read");
    site.write("dipylon.toml", &format!("unix_socket = \"s\"\n{config}"));
    {
        let running = site.serve();
        assert!(
            running.stderr().contains("the certificate has expired"),
            "{}",
            running.stderr()
        );
        let mut socket = std::os::unix::net::UnixStream::connect(site.path("s")).expect("connects");
        socket
            .write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    site.write("dipylon.toml", &config);
    put(90);
    site.mode("tls.key", 0o640);
    let (code, out, _) = check();
    assert_eq!(
        (code, out.contains("mode 640 gives other users access")),
        (1, true),
        "{out}"
    );
    site.write("tls.key", &authority.certify().1);
    site.mode("tls.key", 0o600);
    let (code, out, _) = check();
    assert_eq!(
        (code, out.contains("[fail] certificate")),
        (1, true),
        "another's key: {out}"
    );

    let certificate = put(90);
    let _running = site.serve();
    let held = "is served by the broker of this journal";
    // Trusted by `--ca`; by the certificate chain; and by neither.
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml", "--ca", "ca.pem"]);
    assert!(
        out.contains(held) && out.contains("TLS, terminated by the broker"),
        "{out}"
    );
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    assert!(
        !out.contains(held) && out.contains("does not respond"),
        "{out}"
    );
    site.write("tls.crt", &format!("{certificate}{}", authority.pem));
    let (_, out, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
    assert!(out.contains(held), "{out}");
    let url = format!("https://127.0.0.1:{}", site.port);
    let (_, out, _) = site.run(&["doctor", "--url", &url, "--ca", "ca.pem"]);
    assert!(out.contains("not ready: no policy bundle"), "{out}");
}
