//! The real broker process with its own directory and configuration, and clients for it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dipylon_sdk::client::{Endpoint, EvidenceSource, Identity};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::*;
use dipylon_sdk::validator::{Validator, ValidatorConfig};
use tokio::process::{Child, Command};

use crate::support::{DOMAIN, TestEnvironment};

pub struct BrokerDeployment {
    pub env: TestEnvironment,
    pub root: PathBuf,
    pub url: String,
    config: PathBuf,
}

impl BrokerDeployment {
    pub fn new(root: &Path) -> Self {
        Self::with_config(root, "")
    }

    /// With more lines at the start of its configuration.
    pub fn with_config(root: &Path, more: &str) -> Self {
        let env = TestEnvironment::new();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("address")
            .port();
        let url = format!("http://127.0.0.1:{port}");
        let policy = root.join("policy");
        for (path, text) in &env.policy {
            let file = policy.join(path);
            std::fs::create_dir_all(file.parent().expect("parent")).expect("dir");
            std::fs::write(file, text).expect("file");
        }
        std::fs::write(root.join("trust.json"), env.trust_bundle()).expect("file");
        let config = root.join("dipylon.toml");
        let text = format!(
            "{more}realm = \"test\"\nlisten = \"127.0.0.1:{port}\"\nexternal_url = \"{url}\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n\
             policy = \"policy\"\n[[trust_domain]]\nname = \"{DOMAIN}\"\nbundle = \"trust.json\"\n"
        );
        std::fs::write(&config, text).expect("file");
        Self {
            env,
            root: root.to_owned(),
            url,
            config,
        }
    }

    pub async fn broker(&self) -> Child {
        self.broker_with_log(Stdio::inherit(), "error").await
    }

    /// The real process, with its log level and destination.
    pub async fn broker_with_log(&self, log: Stdio, level: &str) -> Child {
        let ready = self.root.join("ready.json");
        let _none = std::fs::remove_file(&ready);
        let mut child = Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(["serve", "--config"])
            .arg(&self.config)
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .env("DIPYLON_LOG", level)
            .kill_on_drop(true)
            .spawn()
            .expect("the broker starts");
        for _ in 0..1_500 {
            if ready.exists() {
                return child;
            }
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the broker did not start: {status}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the broker is not ready");
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::connect(&self.url)
            .expect("endpoint")
            .with_retry_ms(0)
    }

    pub fn evidence(&self) -> EvidenceSource {
        let id = format!("spiffe://{DOMAIN}/agent/triage");
        EvidenceSource::Fixed(
            self.env
                .svid_for(&self.url, &id, Clock::system().now(), 3_600),
        )
    }

    pub async fn validator(&self, name: &str, audience: &str) -> Option<Validator> {
        let audience = Audience::parse(audience).expect("audience");
        let identity = Identity::Key(Arc::new(self.env.key_of(name)));
        Validator::connect(ValidatorConfig::new(
            &self.url, &self.url, audience, identity,
        ))
        .await
        .ok()
    }
}
