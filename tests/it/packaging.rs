//! Packaging: the production example, the systemd unit, the container image and `sd_notify`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::cli_deployment::CliDeployment;

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(path)
}

#[test]
fn production_example_is_valid() {
    let site = CliDeployment::new();
    let file = example("production/dipylon.toml");
    let (code, out, stderr) = site.run(&["config", "check", file.to_str().expect("text")]);
    assert_eq!(code, 0, "{out}{stderr}");
    assert!(out.contains("soc.example: 1 JWT-SVID keys"), "{out}");
    let (code, shown, stderr) = site.run(&["config", "show", file.to_str().expect("text")]);
    assert_eq!(code, 0, "{stderr}");
    // The unit and the image provide these two directories.
    let unit = std::fs::read_to_string(example("systemd/dipylon.service")).expect("unit");
    let image = std::fs::read_to_string(example("container/Containerfile")).expect("image");
    assert!(unit.contains("StateDirectory=dipylon/data dipylon/keys\nStateDirectoryMode=0700"));
    for dir in ["/var/lib/dipylon/data", "/var/lib/dipylon/keys"] {
        assert!(shown.contains(&format!("\"{dir}\"")), "{shown}");
        assert!(image.contains(&format!("\"{dir}\"")), "{dir}");
    }
    // The program accepts every argument they start it with.
    for line in unit.lines().filter_map(|line| line.strip_prefix("Exec")) {
        let Some((_, args)) = line.split_once("/usr/local/bin/dipylon ") else {
            continue;
        };
        let args: Vec<&str> = args.split_whitespace().collect();
        let (code, _, stderr) = site.run(&[&args[..], &["--help"]].concat());
        assert_eq!(code, 0, "{args:?}: {stderr}");
    }
}

#[test]
fn sd_notify_ready_and_stopping() {
    use rustix::process::{Pid, Signal, kill_process};
    let site = CliDeployment::new();
    let path = site.path("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
    socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("timeout");
    let next = || {
        let mut state = [0; 64];
        let n = socket.recv(&mut state).expect("a datagram");
        String::from_utf8(state[..n].to_vec()).expect("text")
    };
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
        .args(["serve", "--config", "dipylon.toml"])
        .current_dir(site.root.path())
        .env("NOTIFY_SOCKET", &path)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    assert_eq!(next(), "READY=1");
    let answers = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", site.port)).expect("listens");
        std::io::Write::write_all(
            &mut stream,
            b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .expect("asked");
        let mut answer = String::new();
        let _read = std::io::Read::read_to_string(&mut stream, &mut answer);
        answer.contains("alive")
    };
    assert!(answers());
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::HUP).expect("sent");
    assert!(answers(), "SIGHUP does not end it");
    kill_process(pid, Signal::TERM).expect("sent");
    assert_eq!(next(), "STOPPING=1");
    assert!(child.wait().expect("ended").success());
}
