//! Files the broker trusts: a symbolic link or a directory of another user on the way to one keeps the broker from starting,
//! and `config check` says so.

use std::os::unix::fs::{chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::certificate_authority::Authority;
use crate::support::cli_deployment::CliDeployment;

const NOBODY: u32 = 65_534;

/// Every kind of file and directory a broker reads at its start.
const READ: [&str; 10] = [
    "dipylon.toml",
    "trust.json",
    "policy",
    "policy/rules",
    "policy/people.toml",
    "keys",
    "keys/token-signing.pem",
    "data",
    "tls.crt",
    "tls.key",
];

/// A deployment with TLS, a policy and a signing key, and no journal.
fn deployment() -> CliDeployment {
    let site = CliDeployment::new();
    let (certificate, key) = Authority::new().certify();
    site.write("tls.crt", &certificate);
    site.write("tls.key", &key);
    site.mode("tls.key", 0o600);
    let config = site
        .config()
        .replace("external_url = \"http:", "external_url = \"https:");
    site.write(
        "dipylon.toml",
        &format!(
            "policy = \"policy\"\n{config}[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n"
        ),
    );
    let (code, _, error) = serve(&site);
    assert_eq!(code, 0, "{error}");
    for file in std::fs::read_dir(site.path("data")).expect("made") {
        std::fs::remove_file(file.expect("listed").path()).expect("removed");
    }
    site
}

fn serve(site: &CliDeployment) -> (i32, String, String) {
    // Ends at once where it starts: stdin is empty.
    site.run(&["serve", "--config", "dipylon.toml", "--stop-with-stdin"])
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can give files away");
    }
    root
}

/// Puts a link in the place of a file, which gets another path.
fn replace_by_link(file: &Path, moved: &Path, link: &Path) {
    std::fs::rename(file, moved).expect("moved");
    symlink(link, file).expect("link");
}

#[test]
fn links_and_directories_of_other_users_are_refused_and_reported() {
    if !is_root() {
        return;
    }
    let site = deployment();
    for dir in ["theirs", "shared", "ours"] {
        std::fs::create_dir(site.path(dir)).expect("dir");
    }
    chown(site.path("theirs"), Some(NOBODY), None).expect("given");
    site.mode("shared", 0o1777);
    for name in READ {
        let file = site.path(name);
        let last = file.file_name().expect("name");
        let ours = site.path("ours").join(last);
        let refused = |part: &str| {
            let (code, out, _) = site.run(&["config", "check", "dipylon.toml"]);
            let failed =
                |line: &str| line.contains("[fail]") && line.contains(part) && line.contains(name);
            assert!(
                code == 1 && out.lines().any(failed),
                "{name}: {part}: {out}"
            );
            let (code, _, error) = serve(&site);
            assert!(
                code == 1 && error.contains(part) && error.contains(name),
                "{name}: {part}: {error}"
            );
        };
        // The file is root's, but another user can put another file in its place.
        let theirs = site.path("theirs").join(last);
        replace_by_link(&file, &theirs, &theirs);
        refused("got user 65534, who can replace");
        std::fs::remove_file(&file).expect("removed");
        std::fs::rename(&theirs, &file).expect("moved back");
        // The link is another user's, in a directory where only owners may replace.
        let shared = site.path("shared").join(last);
        symlink(&ours, &shared).expect("link");
        lchown(&shared, Some(NOBODY), None).expect("given");
        replace_by_link(&file, &ours, &shared);
        refused("as the owner of this symbolic link, got user 65534");
        // Root's own links to root's files are as good as the files.
        lchown(&shared, Some(0), None).expect("taken");
        let (code, out, _) = site.run(&["config", "check", "dipylon.toml"]);
        assert_eq!(code, 0, "{name}: {out}");
        std::fs::remove_file(&file).expect("removed");
        std::fs::rename(&ours, &file).expect("moved back");
    }
    let (code, _, error) = serve(&site);
    assert_eq!(code, 0, "{error}");
}

#[test]
fn root_is_told_to_run_as_the_owner_of_the_files() {
    if !is_root() {
        return;
    }
    let site = deployment();
    for name in ["keys", "data"] {
        chown(site.path(name), Some(1_234), None).expect("given");
    }
    let (code, out, _) = site.run(&["config", "check", "dipylon.toml"]);
    let advice = "if user 1234 is the broker's user, run this as the broker's user";
    for name in ["keys: ", "data: "] {
        let advised = |line: &str| line.contains(name) && line.contains(advice);
        assert!(code == 1 && out.lines().any(advised), "{name}: {out}");
    }
    assert!(!out.contains("chown 0"), "{out}");
    // In a user namespace without that user, its number says nothing.
    let dipylon = env!("CARGO_BIN_EXE_dipylon");
    let namespace = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", command]);
        unshare.current_dir(site.root.path());
        unshare
    };
    let available = namespace("true").output();
    if !available.is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: no user namespaces on this host");
        return;
    }
    let checked = namespace(dipylon)
        .args(["config", "check", "dipylon.toml"])
        .output()
        .expect("runs");
    let out = String::from_utf8(checked.stdout).expect("text");
    let unmapped = "got a user that this user namespace does not map (shown as 65534)";
    assert!(
        out.contains(unmapped) && !out.contains("user 65534"),
        "{out}"
    );
}
