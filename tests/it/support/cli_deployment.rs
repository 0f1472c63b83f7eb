//! A production-like directory for the real program: configuration, policy, keys; commands and the broker run in it.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::{DOMAIN, TestEnvironment};

/// A directory with everything a production broker needs.
pub struct CliDeployment {
    pub root: tempfile::TempDir,
    pub env: TestEnvironment,
    pub url: String,
    pub port: u16,
}

/// A started broker, killed on drop.
pub struct RunningBroker {
    child: std::process::Child,
    stderr: PathBuf,
}

impl Drop for RunningBroker {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl RunningBroker {
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn code(&self) -> Option<String> {
        let stderr = self.stderr();
        let after = stderr.split("one-time code ").nth(1)?;
        Some(after.split_whitespace().next()?.to_owned())
    }
}

impl CliDeployment {
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("dir");
        let env = TestEnvironment::new();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("address").port();
        let site = Self {
            root,
            env,
            url: format!("http://127.0.0.1:{port}"),
            port,
        };
        for (path, text) in &site.env.policy {
            site.write(&format!("policy/{path}"), text);
        }
        site.write("trust.json", &site.env.trust_bundle());
        site.write("dipylon.toml", &site.config());
        for name in ["olga", "maria"] {
            site.write(&format!("{name}.pem"), &site.env.pem_of(name));
            site.mode(&format!("{name}.pem"), 0o600);
        }
        site
    }

    pub fn config(&self) -> String {
        format!(
            "realm = \"test\"\nlisten = \"127.0.0.1:{}\"\nexternal_url = \"{}\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n\n\
             [[trust_domain]]\nname = \"{DOMAIN}\"\nbundle = \"trust.json\"\n",
            self.port, self.url
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(path, text).expect("written");
    }

    pub fn mode(&self, name: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path(name), mode).expect("chmod");
    }

    /// Runs a command in the directory: exit code, stdout, stderr.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(args)
            .current_dir(self.root.path())
            .env_remove("DIPYLON_URL")
            .env("HOME", self.root.path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (
            out.status.code().expect("ended"),
            text(out.stdout),
            text(out.stderr),
        )
    }

    pub fn serve(&self) -> RunningBroker {
        let (ready, stderr) = (self.path("ready.json"), self.path("stderr.txt"));
        let _none = std::fs::remove_file(&ready);
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args([
                "serve",
                "--json",
                "--config",
                "dipylon.toml",
                "--ready-file",
                "ready.json",
            ])
            .current_dir(self.root.path())
            .env("DIPYLON_LOG", "debug")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(&stderr).expect("file"))
            .spawn()
            .expect("starts");
        for _ in 0..1_500 {
            if ready.exists() {
                return RunningBroker { child, stderr };
            }
            let ended = child.try_wait().expect("asked");
            assert!(
                ended.is_none(),
                "{}",
                std::fs::read_to_string(&stderr).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the broker is not ready");
    }
}
