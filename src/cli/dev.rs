//! Development setup: a configuration, trust domain and keys created on the first start.
//!
//! A development broker differs from others only by this configuration.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::connect::did_you_mean;
use super::error::{CliError, io_error};
use super::files::write_private;
use super::{Common, Output, key, parse, policy_dir};
use crate::clock::Clock;
use crate::config::Config;
use crate::jose::{SigningKey, Usage, jws};
use crate::keys;
use crate::model::{AgentId, KeyId, Secret, SpiffeId, Timestamp};

/// The configuration file of a development directory.
pub(super) const CONFIG_FILE: &str = "dipylon.toml";
const TRUST_DOMAIN: &str = "soc.example";
const TRUST_DOMAIN_KEY: &str = "trust-domain.pem";
const TRUST_BUNDLE: &str = "trust-bundle.json";
/// The people and services of the example.
const KEY_HOLDERS: [&str; 9] = [
    "dana", "maria", "lee", "olga", "idp", "cases", "logs", "vault", "audit",
];
/// The port tried first: the one in the documentation.
const PORT: u16 = 7700;

#[derive(Debug, Subcommand)]
pub(super) enum DevCommand {
    /// Sign a JWT-SVID with the development trust domain, as a SPIFFE agent does for a workload it attested
    Svid(SvidArgs),
    /// Create a test trust domain: a key that signs JWT-SVIDs, and the trust bundle for dipylon.toml
    TrustDomain {
        /// The directory; created if missing, existing files are never replaced
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct SvidArgs {
    /// A registered agent
    #[arg(long, value_name = "ID", value_parser = AgentId::parse, required_unless_present = "spiffe_id")]
    agent: Option<AgentId>,
    /// The SPIFFE ID of any workload
    #[arg(long, value_name = "ID", value_parser = SpiffeId::parse, conflicts_with = "agent")]
    spiffe_id: Option<SpiffeId>,
    /// Directory of the development broker [default: --dev-dir]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Sign with the key of 'dev trust-domain', for a broker configured with its trust bundle
    #[arg(long, value_name = "FILE", requires_all = ["audience", "spiffe_id"], conflicts_with = "data_dir")]
    domain_key: Option<PathBuf>,
    /// With --domain-key: the broker's evidence audience, which is its external URL unless configured
    #[arg(long, value_name = "URL", requires = "domain_key")]
    audience: Option<String>,
    /// Lifetime of the SVID
    #[arg(long, default_value = "5m", value_parser = parse::seconds)]
    ttl: u32,
    /// Write to a file with mode 0600 instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) fn run(
    common: &Common,
    output: &Output,
    command: DevCommand,
) -> Result<ExitCode, CliError> {
    let args = match command {
        DevCommand::Svid(args) => args,
        DevCommand::TrustDomain { out } => return create_trust_domain(output, &out),
    };
    let now = Clock::system().now();
    let (subject, evidence) = match (&args.domain_key, &args.audience, &args.spiffe_id) {
        (Some(key), Some(audience), Some(subject)) => {
            let signed = sign_svid(&keys::read(key)?, audience, subject, args.ttl, now)?;
            (subject.clone(), signed)
        }
        _ => {
            let dev_config = match &args.data_dir {
                Some(dir) => DevConfig::read(dir)?,
                None => DevConfig::load(common)?,
            };
            let subject = match (args.spiffe_id, args.agent) {
                (Some(id), _) => id,
                (None, Some(agent)) => dev_config.spiffe_id(&agent)?,
                (None, None) => {
                    return Err(CliError::usage(
                        "no workload given: use --agent or --spiffe-id",
                    ));
                }
            };
            let evidence = dev_config.issue_svid(&subject, args.ttl, now)?;
            (subject, evidence)
        }
    };
    match args.out {
        Some(path) => {
            write_private(&path, evidence.expose_secret())?;
            output.print(
                || json!({ "file": path, "subject": subject }),
                || format!("{} for {subject}", path.display()),
            );
        }
        None => output.print(
            || json!({ "svid": evidence.expose_secret(), "subject": subject }),
            || evidence.expose_secret().to_owned(),
        ),
    }
    Ok(ExitCode::SUCCESS)
}

/// `$HOME/.dipylon/dev`.
pub(super) fn default_dir() -> Result<PathBuf, CliError> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home =
        home.ok_or_else(|| CliError::usage("HOME is not set; name a directory with --dev-dir"))?;
    Ok(PathBuf::from(home).join(".dipylon").join("dev"))
}

/// A development broker's directory.
#[derive(Debug, Clone)]
pub(super) struct DevConfig {
    dir: PathBuf,
    config: Config,
}

impl DevConfig {
    /// The directory given by the arguments, or the default one.
    pub(super) fn load(common: &Common) -> Result<Self, CliError> {
        match &common.dev_dir {
            Some(dir) => Self::read(dir),
            None => Self::read(&default_dir()?),
        }
    }

    /// Reads an existing directory.
    pub(super) fn read(dir: &Path) -> Result<Self, CliError> {
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let file = dir.join(CONFIG_FILE);
        if !file.exists() {
            return Err(CliError::usage(format!("{} does not exist", file.display()))
                .with_next_step("start a development broker with 'dipylon serve --dev', or name another directory with --dev-dir or DIPYLON_DEV"));
        }
        let config = Config::read(&file)?;
        if config.dev {
            Ok(Self { dir, config })
        } else {
            Err(CliError::usage(format!(
                "{} is not the configuration of a development broker",
                file.display()
            )))
        }
    }

    /// Reads the directory, or creates it: keys, trust domain, policy bundle, and the configuration last, so that the next start
    /// resumes an interrupted first one. True if it was created now.
    pub(super) fn prepare(
        dir: &Path,
        listen: Option<SocketAddr>,
        policy: Option<&Path>,
    ) -> Result<(Self, bool), CliError> {
        let file = dir.join(CONFIG_FILE);
        if file.exists() {
            return Ok((Self::read(dir)?, false));
        }
        let listen = pick_free_address(listen)?;
        let operator = pick_free_address(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))))?;
        std::fs::create_dir_all(dir).map_err(io_error(dir.display()))?;
        let secrets = dir.join("dev");
        keys::make_private_dir(&secrets)?;
        let domain = read_or_create_key(&secrets.join(TRUST_DOMAIN_KEY))?;
        write_private(&secrets.join(TRUST_BUNDLE), &trust_bundle(&domain))?;
        let mut registered = String::from(
            "\n# ---------------------------------------------------------------- keys of this directory\n",
        );
        for holder in KEY_HOLDERS {
            let key = read_or_create_key(&secrets.join(format!("{holder}.pem")))?;
            registered.push('\n');
            registered.push_str(&key::people_toml(holder, key.public()));
        }
        let policy = match policy {
            Some(given) => given.canonicalize().map_err(io_error(given.display()))?,
            None => {
                let texts = policy_dir::EXAMPLE.map(|(path, text)| match path {
                    "people.toml" => (path, format!("{text}{registered}")),
                    other => (other, text.to_owned()),
                });
                policy_dir::write(
                    &dir.join("policy"),
                    texts.iter().map(|(path, text)| (*path, text.as_str())),
                )?;
                PathBuf::from("policy")
            }
        };
        let policy = toml::Value::String(policy.to_string_lossy().into_owned());
        let text = format!(
            "# Created by the first `dipylon serve --dev`, read by every later one. Delete the directory to start over.\n\
             realm = \"dev\"\n\
             dev = true                       # loopback only; responses say why authentication failed\n\
             listen = \"{listen}\"\n\
             external_url = \"http://{listen}\"\n\
             admin_listen = \"{operator}\"   # /metrics, /livez, /readyz: on this machine only\n\
             data_dir = \"data\"\n\
             key_dir = \"keys\"\n\
             policy = {policy}                # seeds an empty journal; later changes go through `dipylon policy apply`\n\
             \n\
             [[trust_domain]]\n\
             name = \"{TRUST_DOMAIN}\"\n\
             bundle = \"dev/{TRUST_BUNDLE}\"\n"
        );
        write_private(&file, &text)?;
        Ok((Self::read(dir)?, true))
    }

    /// The configuration.
    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The key file of a person or service.
    pub(super) fn key_file(&self, holder: &str) -> PathBuf {
        self.dir.join("dev").join(format!("{holder}.pem"))
    }

    /// The SPIFFE ID of an agent of the policy directory.
    pub(super) fn spiffe_id(&self, agent: &AgentId) -> Result<SpiffeId, CliError> {
        let Some(policy) = &self.config.policy else {
            return Err(CliError::usage(
                "the configuration has no `policy` directory to look up agents in: use --spiffe-id",
            ));
        };
        let (_, bundle) = policy_dir::load(policy)?;
        bundle
            .agent(agent)
            .map(|a| a.spiffe_id.clone())
            .ok_or_else(|| {
                let known: Vec<_> = bundle.agents().map(|a| a.id.to_string()).collect();
                let near = did_you_mean(agent.as_str(), known.iter().map(String::as_str));
                CliError::usage(format!(
                    "agent {agent} is not in {}/agents.toml{near}",
                    policy.display()
                ))
                .with_next_step(format!("registered: {}", known.join(", ")))
            })
    }

    /// A JWT-SVID of the development trust domain, for this broker.
    pub(super) fn issue_svid(
        &self,
        subject: &SpiffeId,
        ttl_s: u32,
        now: Timestamp,
    ) -> Result<Secret, CliError> {
        let key = keys::read(&self.dir.join("dev").join(TRUST_DOMAIN_KEY))?;
        let audience = &self.config.settings.evidence_audience;
        sign_svid(&key, audience, subject, ttl_s, now)
    }
}

/// Signs a JWT-SVID (SPIFFE JWT-SVID §3) with this key.
fn sign_svid(
    key: &SigningKey,
    audience: &str,
    subject: &SpiffeId,
    ttl_s: u32,
    now: Timestamp,
) -> Result<Secret, CliError> {
    let header =
        json!({ "alg": "ES256", "kid": KeyId::from_thumbprint(key.thumbprint()), "typ": "JWT" });
    let claims = json!({
        "sub": subject,
        "aud": [audience],
        "iat": now.secs(),
        "exp": now.plus_secs(i64::from(ttl_s)).secs(),
    });
    let signed =
        jws::sign(&header, &claims, key).map_err(|e| CliError::failed(format!("evidence: {e}")))?;
    Ok(Secret::new(signed))
}

/// The SPIFFE trust bundle of a domain with one key.
fn trust_bundle(key: &SigningKey) -> String {
    let kid = KeyId::from_thumbprint(key.thumbprint());
    let jwk = key.public().to_jwk_named(&kid, Usage::JwtSvid);
    json!({ "keys": [jwk], "spiffe_sequence": 1 }).to_string()
}

/// Creates the key and trust bundle of a test trust domain.
fn create_trust_domain(output: &Output, out: &Path) -> Result<ExitCode, CliError> {
    std::fs::create_dir_all(out).map_err(io_error(out.display()))?;
    let (key_file, bundle_file) = (out.join(TRUST_DOMAIN_KEY), out.join(TRUST_BUNDLE));
    let key = keys::create(&key_file)?;
    write_private(&bundle_file, &trust_bundle(&key))?;
    output.print(
        || json!({ "key": key_file, "bundle": bundle_file }),
        || {
            format!(
                "{}   signs SVIDs: a user who can read this file can act as every workload of the domain\n{}  the trust bundle, for dipylon.toml",
                key_file.display(),
                bundle_file.display()
            )
        },
    );
    Ok(ExitCode::SUCCESS)
}

fn read_or_create_key(path: &Path) -> Result<SigningKey, CliError> {
    Ok(if path.exists() {
        keys::read(path)?
    } else {
        keys::create(path)?
    })
}

/// A free loopback address: the given one, or the default port, or any port; port 0 means any.
fn pick_free_address(requested: Option<SocketAddr>) -> Result<SocketAddr, CliError> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let candidates = requested.map_or_else(
        || vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), any],
        |requested| vec![requested],
    );
    let mut last = None;
    for address in candidates {
        if !address.ip().is_loopback() {
            return Err(not_loopback(address));
        }
        match TcpListener::bind(address).and_then(|listener| listener.local_addr()) {
            Ok(free) => return Ok(free),
            Err(error) => last = Some((address, error)),
        }
    }
    Err(match last {
        Some((address, error)) => CliError::failed(format!("cannot listen on {address}: {error}")),
        None => CliError::failed("no loopback address is free to listen on"),
    })
}

/// The error for a development broker on another address than loopback: its keys and policy are examples.
pub(super) fn not_loopback(address: SocketAddr) -> CliError {
    CliError::usage(format!(
        "a development broker listens on loopback only, and {address} is not loopback"
    ))
    .with_next_step(
        "to serve other machines, write a configuration and start with 'dipylon serve --config FILE'",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::policy::PolicyBundle;

    fn any() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }

    #[test]
    fn dev_setup_is_idempotent() {
        let dir = tempfile::tempdir().expect("dir");
        let (dev_config, created) =
            DevConfig::prepare(dir.path(), Some(any()), None).expect("created");
        assert!(
            created && dev_config.config().dev && dev_config.config().listen.ip().is_loopback()
        );
        let texts = |file: &str| std::fs::read_to_string(dir.path().join(file)).expect(file);
        let before = (
            texts(CONFIG_FILE),
            texts("policy/people.toml"),
            texts("dev/trust-bundle.json"),
            texts("dev/maria.pem"),
        );
        let (again, created) = DevConfig::prepare(dir.path(), None, None).expect("read");
        assert!(!created);
        assert_eq!(
            again.config().listen,
            dev_config.config().listen,
            "the port is kept"
        );
        let after = (
            texts(CONFIG_FILE),
            texts("policy/people.toml"),
            texts("dev/trust-bundle.json"),
            texts("dev/maria.pem"),
        );
        assert_eq!(before, after);
        for file in ["maria.pem", TRUST_DOMAIN_KEY, TRUST_BUNDLE] {
            assert_eq!(
                std::fs::metadata(dir.path().join("dev").join(file))
                    .expect(file)
                    .mode()
                    & 0o777,
                0o600,
                "{file}"
            );
        }
        let (_, bundle) = policy_dir::load(&dir.path().join("policy")).expect("a complete bundle");
        assert!(
            bundle.people().all(|p| p.keys.len() == 1)
                && bundle.services().all(|s| s.keys.len() == 1)
        );
    }

    #[test]
    fn dev_setup_resumes_after_interruption() {
        let dir = tempfile::tempdir().expect("dir");
        let (dev_config, _) = DevConfig::prepare(dir.path(), Some(any()), None).expect("created");
        let key = keys::read(&dev_config.key_file("olga"))
            .expect("key")
            .thumbprint();
        std::fs::remove_file(dir.path().join(CONFIG_FILE)).expect("removed");
        let (dev_config, created) =
            DevConfig::prepare(dir.path(), Some(any()), None).expect("created");
        assert!(created);
        assert_eq!(
            keys::read(&dev_config.key_file("olga"))
                .expect("key")
                .thumbprint(),
            key
        );
    }

    #[test]
    fn loopback_only() {
        let dir = tempfile::tempdir().expect("dir");
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        assert!(
            DevConfig::prepare(dir.path(), Some(everywhere), None)
                .expect_err("refused")
                .message
                .contains("loopback")
        );
        assert!(!dir.path().join("dev").exists(), "nothing was created");
    }

    #[test]
    fn dev_svid_names_agent_and_broker() {
        let dir = tempfile::tempdir().expect("dir");
        let (dev_config, _) = DevConfig::prepare(dir.path(), Some(any()), None).expect("created");
        let subject = dev_config
            .spiffe_id(&AgentId::parse("triage").expect("id"))
            .expect("registered");
        let now = Timestamp::from_secs(1_800_000_000);
        let evidence = dev_config.issue_svid(&subject, 300, now).expect("signed");
        let keys = crate::jose::KeySet::parse(
            std::fs::read(dir.path().join("dev").join(TRUST_BUNDLE))
                .expect("bundle")
                .as_slice(),
            Usage::JwtSvid,
        );
        const RULES: crate::jose::HeaderRules = crate::jose::HeaderRules {
            typ: crate::jose::TypRule::Optional(&["JWT"]),
            kid: crate::jose::KidRule::Required,
            extras: &[],
        };
        let checked =
            jws::verify(evidence.expose_secret(), &keys.expect("keys"), &RULES).expect("verifies");
        assert_eq!(
            checked.claims().string("sub"),
            Ok("spiffe://soc.example/agent/triage")
        );
        assert_eq!(
            checked.claims().audience(),
            Ok(dev_config.config().settings.evidence_audience.as_str())
        );
        let unknown = dev_config
            .spiffe_id(&AgentId::parse("unregistered").expect("id"))
            .expect_err("unknown");
        assert!(unknown.next_step.expect("a next step").contains("triage"));
    }

    #[test]
    fn dev_setup_generates_all_keys() {
        let files = policy_dir::EXAMPLE
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
            .collect();
        let files = crate::policy::BundleFiles::new(files).expect("files");
        let bundle = PolicyBundle::load(&files).expect("bundle");
        let mut all: Vec<String> = bundle.people().map(|p| p.id.to_string()).collect();
        all.extend(bundle.services().map(|s| s.id.to_string()));
        all.sort();
        let mut holders = KEY_HOLDERS.to_vec();
        holders.sort_unstable();
        assert_eq!(all, holders);
    }
}
