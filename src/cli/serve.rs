//! `serve`: a broker.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

use super::dev::{self, Home};
use super::failure::{Failure, failed};
use super::{Common, Say, bundle};
use crate::broker::{Hall, Start};
use crate::clock::Clock;
use crate::config::{Config, OperatorAddress};
use crate::journal::{Faults, ReadOnly};
use crate::rules::BundleFiles;
use crate::serve::OperatorListener;
use crate::telemetry::logs;
use crate::{keys, serve};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// A development broker on loopback: the first start makes its configuration and keys
    #[arg(long, conflicts_with = "config", required_unless_present = "config")]
    dev: bool,
    /// The configuration; nothing is made but the signing key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: the journal's directory. With --dev: where all of it is kept [default: ~/.dipylon/dev]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen; a development broker keeps the port of its first start
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The policy bundle that seeds an empty journal
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Write {"grpc", "http", "operator", "pid", "checkpoint"} here once calls are answered
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Stop when stdin ends: for whoever starts a broker as a child
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

pub(super) async fn run(common: &Common, say: &Say, verb: Serve) -> Result<ExitCode, Failure> {
    let (config, home) = configuration(common, &verb)?;
    let _speaking = logs::start(&logs::Settings {
        format: config.log,
        usual: if config.dev {
            "warn"
        } else {
            "warn,dipylon=info"
        },
        otlp_endpoint: config.otlp_endpoint.clone(),
    })
    .map_err(|e| Failure::failed(e.to_string()))?;
    if config.dev {
        say.aside(&warning(&config));
    }
    if let Some(path) = &verb.ready_file {
        // Left by one that was killed: whoever waits for this file waits for this start.
        let _gone = std::fs::remove_file(path);
    }
    if !config.listen.ip().is_loopback() {
        say.aside(&format!(
            "WARNING  {} is not loopback, and this broker speaks plain HTTP: proofs and tokens cross the network in clear.\n         Listen on loopback and put a TLS proxy before it, on the same host.",
            config.listen
        ));
    }
    // Bound before the journal is opened: a second broker on the same port leaves no trace.
    let listener = serve::listen(config.listen)
        .await
        .map_err(|e| Failure::failed(e.to_string()))?;
    let operator = operator(config.operator_listen.as_ref()).await?;
    let operator_place = operator.as_ref().map(OperatorListener::place);
    let seed = config
        .policy
        .as_deref()
        .map(|dir| seed(dir, &config.data_dir))
        .transpose()?
        .flatten();
    let unseeded = seed.is_none() && config.policy.is_none();
    let mut trust = Vec::new();
    for (domain, file) in &config.trust_domains {
        trust.push((
            domain.clone(),
            std::fs::read_to_string(file).map_err(failed(file.display()))?,
        ));
    }
    let start = Start {
        settings: config.settings.clone(),
        data_dir: config.data_dir.clone(),
        key: keys::signing_key(&config.key_dir, &config.data_dir)?,
        trust,
        seed,
        clock: Clock::system(),
        faults: Faults::default(),
    };
    let hall = Hall::start(start)
        .await
        .map_err(|e| Failure::failed(e.to_string()))?;
    let checkpoint = hall.journal().tail().borrow().head.to_string();
    if let Err(why) = hall.ready() {
        let hint = if unseeded {
            "; start with --policy DIR to seed an empty journal"
        } else {
            ""
        };
        say.aside(&format!("dipylon: everything is denied: {why}{hint}"));
    }
    let url = &config.settings.external_url;
    let ready = json!({
        "grpc": url,
        "http": url,
        "operator": operator_place,
        "pid": std::process::id(),
        "checkpoint": checkpoint,
    });
    if let Some(path) = &verb.ready_file {
        dev::write_private(path, &ready.to_string())?;
    }
    say.either(
        || ready.clone(),
        || {
            let mut text = format!(
                "listening  {} as {url}, pid {}\n",
                config.listen,
                std::process::id()
            );
            text.push_str(&format!(
                "journal    {}, checkpoint {checkpoint}\n",
                config.data_dir.display()
            ));
            if let Some(place) = &operator_place {
                text.push_str(&format!("operators  {place}: /metrics, /livez, /readyz\n"));
            }
            if let Some(home) = &home {
                text.push_str(&to_try(home));
            }
            text
        },
    );
    let operating = operator.map(|listener| tokio::spawn(serve::operate(hall.clone(), listener)));
    let served = serve::serve(hall, listener, stop(verb.stop_with_stdin)?).await;
    if let Some(operating) = operating {
        operating.abort();
    }
    if let Some(path) = &verb.ready_file {
        let _gone = std::fs::remove_file(path);
    }
    served.map_err(|e| Failure::failed(e.to_string()))?;
    Ok(ExitCode::SUCCESS)
}

async fn operator(address: Option<&OperatorAddress>) -> Result<Option<OperatorListener>, Failure> {
    let listening = match address {
        None => return Ok(None),
        Some(OperatorAddress::Tcp(address)) => OperatorListener::tcp(*address).await,
        Some(OperatorAddress::Unix(path)) => OperatorListener::unix(path),
    };
    listening.map(Some).map_err(failed("operator_listen"))
}

fn configuration(common: &Common, verb: &Serve) -> Result<(Config, Option<Home>), Failure> {
    let (mut config, home) = match &verb.config {
        Some(file) => {
            let mut config = Config::read(file)?;
            if let Some(dir) = &verb.data_dir {
                config.data_dir.clone_from(dir);
            }
            config.listen = verb.listen.unwrap_or(config.listen);
            if config.dev && !config.listen.ip().is_loopback() {
                return Err(dev::not_loopback(config.listen));
            }
            (config, None)
        }
        None => {
            if let Some(listen) = verb.listen.filter(|listen| !listen.ip().is_loopback()) {
                return Err(dev::not_loopback(listen));
            }
            let dir = match verb.data_dir.as_ref().or(common.dev_dir.as_ref()) {
                Some(dir) => dir.clone(),
                None => dev::default_dir()?,
            };
            let (home, made) = Home::prepare(&dir, verb.listen, verb.policy.as_deref())?;
            let config = home.config().clone();
            if let Some(listen) = verb
                .listen
                .filter(|listen| !made && listen.port() != 0 && *listen != config.listen)
            {
                return Err(Failure::usage(format!(
                    "this development broker keeps {}, not {listen}",
                    config.listen
                ))
                .next(format!(
                    "proofs and tokens name its URL; delete {} to begin anew",
                    home.dir().display()
                )));
            }
            (config, Some(home))
        }
    };
    if let Some(policy) = &verb.policy {
        config.policy = Some(policy.clone());
    }
    Ok((config, home))
}

/// The files that seed an empty journal. A journal that is there already does without them: an unfinished edit in the
/// policy directory must not keep a broker from starting again.
fn seed(dir: &Path, data_dir: &Path) -> Result<Option<BundleFiles>, Failure> {
    let read = bundle::read(dir).and_then(|files| {
        BundleFiles::new(files)
            .map_err(|e| Failure::failed(format!("policy bundle {}:\n{e}", dir.display())))
    });
    match read {
        Ok(files) => Ok(Some(files)),
        Err(failure) if ReadOnly::open(data_dir).is_ok() => {
            tracing::warn!(policy = %dir.display(), "not read, and not needed if a policy bundle is in force: {}", failure.message);
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// Resolves when the process is told to stop.
fn stop(with_stdin: bool) -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("SIGINT"))?;
    let stdin_ends = async move {
        if !with_stdin {
            return std::future::pending().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut ignored = [0; 256];
        while stdin.read(&mut ignored).await.is_ok_and(|n| n > 0) {}
    };
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stdin_ends => {}
        }
    })
}

fn warning(config: &Config) -> String {
    format!(
        "WARNING  ---------------------------------------------------------------\n\
         WARNING  DEVELOPMENT broker: example policy, throw-away keys, loopback only.\n\
         WARNING  Whoever can read its directory can be anyone. Not for real work.\n\
         WARNING  issuer {}\n\
         WARNING  ---------------------------------------------------------------",
        config.settings.issuer
    )
}

/// Commands to begin with, as they can be typed.
fn to_try(home: &Home) -> String {
    let me = me();
    let maria = quoted(&home.key_file("maria").to_string_lossy());
    let mut text = format!(
        "\nIn another terminal:\n  export DIPYLON_URL={}\n",
        home.config().settings.external_url
    );
    if dev::default_dir()
        .ok()
        .and_then(|dir| dir.canonicalize().ok())
        .is_none_or(|dir| dir != home.dir())
    {
        text.push_str(&format!(
            "  export DIPYLON_DEV={}\n",
            quoted(&home.dir().to_string_lossy())
        ));
    }
    text.push_str(&format!(
        "  {me} task open --agent triage --purpose \"contain INC-8841\" --max-duration 10m\n  \
         {me} token request --action case.read --target Case::INC-8841 --audience https://cases.soc.example\n  \
         {me} token request --action account.disable --target Account::ann --param end_sessions=true \
         --audience https://idp.soc.example --wait 60s\n\
         The last one waits for a person:  {me} inbox --key {maria}\n"
    ));
    text
}

/// This program, as it was called.
pub(super) fn me() -> String {
    quoted(
        &std::env::args()
            .next()
            .unwrap_or_else(|| "dipylon".to_owned()),
    )
}

/// A word as a shell reads it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("/home/a/x.pem"), "/home/a/x.pem");
        assert_eq!(quoted("/home/a b/it's"), r"'/home/a b/it'\''s'");
        assert_eq!(quoted("$(x)"), "'$(x)'");
    }

    #[test]
    fn a_broken_directory_matters_only_to_an_empty_journal() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(seed(dir.path(), &dir.path().join("data")).is_err());
    }
}
