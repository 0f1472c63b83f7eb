//! `serve`: run a broker.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

use super::dev::{self, DevConfig};
use super::error::{CliError, io_error};
use super::shell::{program_name, shell_quote};
use super::{Common, Output, files, policy_dir, sd_notify};
use crate::broker::{Broker, BrokerOptions};
use crate::clock::Clock;
use crate::config::{AdminAddress, Config};
use crate::journal::{FaultInjection, JournalReader};
use crate::model::Secret;
use crate::policy::BundleFiles;
use crate::serve::tls::Tls;
use crate::serve::unix::GuardedUnixListener;
use crate::serve::{AdminListener, ServeError, ServerConfig};
use crate::telemetry::logs;
use crate::{keys, serve};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Run a development broker on loopback; the first start creates its configuration and keys
    #[arg(long, conflicts_with = "config", required_unless_present = "config")]
    dev: bool,
    /// The configuration file; only the signing key is created
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: the journal's directory. With --dev: the directory of all its files [default: ~/.dipylon/dev]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Listen address; a development broker keeps the port of its first start
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The policy bundle that seeds an empty journal
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Write {"grpc", "http", "operator", "pid", "checkpoint"} to this file once calls are answered
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Stop when stdin ends: for a parent process
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    args: ServeArgs,
) -> Result<ExitCode, CliError> {
    let (config, home) = load_config(common, &args)?;
    disable_core_dumps();
    let _log_guard = logs::start(&logs::LogSettings {
        format: config.log,
        default_filter: if config.dev {
            "warn"
        } else {
            "warn,dipylon=info"
        },
        otlp_endpoint: config.otlp_endpoint.clone(),
    })
    .map_err(|e| CliError::failed(e.to_string()))?;
    if config.dev {
        output.note(&dev_warning(&config));
    }
    if let Some(path) = &args.ready_file {
        // Left by a killed broker: a process that waits for this file waits for this start.
        let _gone = std::fs::remove_file(path);
    }
    if !config.listen.ip().is_loopback() && config.tls.is_none() {
        output.note(&format!(
            "WARNING  {} is not loopback, and this broker speaks plain HTTP: proofs and tokens cross the network in clear.\n         Give it a certificate ([tls] in the configuration), or listen on loopback behind a TLS proxy on the same host.",
            config.listen
        ));
    }
    // Bound before the journal is opened: a second broker on the same port leaves no trace.
    let doors = bind_listeners(&config)
        .await
        .map_err(|e| CliError::failed(e.to_string()))?;
    let operator = bind_admin_listener(config.admin_listen.as_ref()).await?;
    let operator_place = operator.as_ref().map(AdminListener::display_address);
    let seed = config
        .policy
        .as_deref()
        .map(|dir| seed_policy(dir, &config.data_dir))
        .transpose()?
        .flatten();
    let unseeded = seed.is_none() && config.policy.is_none();
    let mut trust = Vec::new();
    for (domain, file) in &config.trust_domains {
        trust.push((
            domain.clone(),
            std::fs::read_to_string(file).map_err(io_error(file.display()))?,
        ));
    }
    let options = BrokerOptions {
        settings: config.settings.clone(),
        data_dir: config.data_dir.clone(),
        key: keys::signing_key(&config.key_dir, &config.data_dir)?,
        trust,
        seed,
        clock: Clock::system(),
        faults: FaultInjection::default(),
    };
    let broker = Broker::open(options)
        .await
        .map_err(|e| CliError::failed(e.to_string()))?;
    let checkpoint = broker.journal().head().borrow().checkpoint.to_string();
    if let Err(why) = broker.ready() {
        let hint = if unseeded {
            "; the first operator brings a policy bundle by a one-time code, or start with --policy DIR"
        } else {
            ""
        };
        output.note(&format!("dipylon: everything is denied: {why}{hint}"));
        if let Some(code) = broker.bootstrap_code().filter(|_| !config.dev) {
            output.warn(&first_operator_text(&config.settings.external_url, &code));
        }
    }
    let url = &config.settings.external_url;
    let ready = json!({
        "grpc": url,
        "http": url,
        "console": format!("{}/console", config.settings.console_url),
        "operator": operator_place,
        "pid": std::process::id(),
        "checkpoint": checkpoint,
    });
    if let Some(path) = &args.ready_file {
        files::write_private(path, &ready.to_string())?;
    }
    output.print(
        || ready.clone(),
        || {
            let mut text = format!(
                "listening  {} as {url}, pid {}\n",
                config.listen,
                std::process::id()
            );
            if let Some(path) = &config.unix_socket {
                text.push_str(&format!("socket     {}\n", path.display()));
            }
            text.push_str(&format!(
                "journal    {}, checkpoint {checkpoint}\n",
                config.data_dir.display()
            ));
            if let Some(place) = &operator_place {
                text.push_str(&format!("operators  {place}: /metrics, /livez, /readyz\n"));
            }
            if let Some(home) = &home {
                text.push_str(&quickstart_text(home));
            }
            text
        },
    );
    let operating =
        operator.map(|listener| tokio::spawn(serve::serve_admin(broker.clone(), listener)));
    let stop = stop_signal(args.stop_with_stdin)?;
    tracing::info!(url, pid = std::process::id(), checkpoint, "started");
    let stop = async move {
        stop.await;
        tracing::info!("stopping: calls in flight finish");
        sd_notify::send(sd_notify::STOPPING);
    };
    sd_notify::send(sd_notify::READY);
    let served = serve::serve(broker, doors, stop).await;
    if let Some(operating) = operating {
        operating.abort();
    }
    if let Some(path) = &args.ready_file {
        let _gone = std::fs::remove_file(path);
    }
    served.map_err(|e| CliError::failed(e.to_string()))?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Keeps the memory of this process, and the keys in it, from core dumps and from other processes of the same user. Best
/// effort: a failure is logged.
fn disable_core_dumps() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let core = setrlimit(Resource::Core, none);
    let dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = core.and(dumpable) {
        tracing::warn!(%error, "could not disable core dumps");
    }
}

/// Binds what the configuration names.
async fn bind_listeners(config: &Config) -> Result<ServerConfig, ServeError> {
    let tls = match &config.tls {
        Some(files) => Some(Tls::read(&files.certificate, &files.key)?),
        None => None,
    };
    let unix = match &config.unix_socket {
        Some(path) => Some(GuardedUnixListener::bind(path)?),
        None => None,
    };
    let limits = config.connections;
    raise_fd_limit(limits.max, unix.is_some());
    Ok(ServerConfig {
        tls,
        unix,
        limits,
        ..serve::listen(config.listen).await?.into()
    })
}

/// Makes room for as many open files as connections may be, and says so if the system gives less.
fn raise_fd_limit(max: usize, unix: bool) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let doors = if unix { 2 } else { 1 };
    let needed = u64::try_from(max)
        .unwrap_or(u64::MAX)
        .saturating_mul(doors)
        .saturating_add(OWN_FILES);
    let limit = getrlimit(Resource::Nofile);
    // No limit is enough.
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if enough(limit.current) {
        return;
    }
    let raised = Rlimit {
        current: Some(limit.maximum.map_or(needed, |most| most.min(needed))),
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() || !enough(limit.maximum) {
        tracing::warn!(
            needed,
            may = ?limit.maximum,
            "RLIMIT_NOFILE is lower than connections.max: raise the limit (ulimit -n, LimitNOFILE) or lower connections.max"
        );
    }
}

/// Files the broker itself has open: the journal, its own sockets, files being read.
const OWN_FILES: u64 = 64;

async fn bind_admin_listener(
    address: Option<&AdminAddress>,
) -> Result<Option<AdminListener>, CliError> {
    let listening = match address {
        None => return Ok(None),
        Some(AdminAddress::Tcp(address)) => AdminListener::tcp(*address).await,
        Some(AdminAddress::Unix(path)) => AdminListener::unix(path),
    };
    listening.map(Some).map_err(io_error("admin_listen"))
}

fn load_config(common: &Common, args: &ServeArgs) -> Result<(Config, Option<DevConfig>), CliError> {
    let (mut config, home) = match &args.config {
        Some(file) => {
            let mut config = Config::read(file)?;
            if let Some(dir) = &args.data_dir {
                config.data_dir.clone_from(dir);
            }
            config.listen = args.listen.unwrap_or(config.listen);
            if config.dev && !config.listen.ip().is_loopback() {
                return Err(dev::not_loopback(config.listen));
            }
            (config, None)
        }
        None => {
            if let Some(listen) = args.listen.filter(|listen| !listen.ip().is_loopback()) {
                return Err(dev::not_loopback(listen));
            }
            let dir = match args.data_dir.as_ref().or(common.dev_dir.as_ref()) {
                Some(dir) => dir.clone(),
                None => dev::default_dir()?,
            };
            let (home, made) = DevConfig::prepare(&dir, args.listen, args.policy.as_deref())?;
            let config = home.config().clone();
            if let Some(listen) = args
                .listen
                .filter(|listen| !made && listen.port() != 0 && *listen != config.listen)
            {
                return Err(CliError::usage(format!(
                    "this development broker keeps {}, not {listen}",
                    config.listen
                ))
                .with_hint(format!(
                    "proofs and tokens name its URL; delete {} to begin anew",
                    home.dir().display()
                )));
            }
            (config, Some(home))
        }
    };
    if let Some(policy) = &args.policy {
        config.policy = Some(policy.clone());
    }
    Ok((config, home))
}

/// The files that seed an empty journal. A journal that is there already does without them: an unfinished edit in the
/// policy directory must not keep a broker from starting again.
fn seed_policy(dir: &Path, data_dir: &Path) -> Result<Option<BundleFiles>, CliError> {
    let read = policy_dir::read(dir).and_then(|files| {
        BundleFiles::new(files)
            .map_err(|e| CliError::failed(format!("policy bundle {}:\n{e}", dir.display())))
    });
    match read {
        Ok(files) => Ok(Some(files)),
        Err(error) if JournalReader::open(data_dir).is_ok() => {
            tracing::warn!(policy = %dir.display(), "not read, and not needed if a policy bundle is in force: {}", error.message);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Resolves when the process is told to stop.
fn stop_signal(with_stdin: bool) -> Result<impl Future<Output = ()>, CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("SIGINT"))?;
    // Heard so that it does not end the broker: supervisors send it to have files read again.
    let mut hangup = signal(SignalKind::hangup()).map_err(io_error("SIGHUP"))?;
    let stdin_ends = async move {
        if !with_stdin {
            return std::future::pending().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut ignored = [0; 256];
        while stdin.read(&mut ignored).await.is_ok_and(|n| n > 0) {}
    };
    Ok(async move {
        tokio::pin!(stdin_ends);
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                () = &mut stdin_ends => return,
                _ = hangup.recv() => tracing::info!("SIGHUP: the certificate is read again; the rest of the configuration at a start alone"),
            }
        }
    })
}

/// Instructions for the first operator. Never logged, so that logs hold no code.
fn first_operator_text(url: &str, code: &Secret) -> String {
    format!(
        "FIRST OPERATOR  one-time code {}\n                \
         good for ten minutes and one policy bundle that lists your key as an operator's:\n                \
         dipylon policy apply DIR --url {} --key KEY.pem --code",
        code.expose_secret(),
        shell_quote(url)
    )
}

fn dev_warning(config: &Config) -> String {
    format!(
        "WARNING  ---------------------------------------------------------------\n\
         WARNING  DEVELOPMENT broker: example policy, throw-away keys, loopback only.\n\
         WARNING  Anyone who can read its directory can act as anyone. Not for production.\n\
         WARNING  issuer {}\n\
         WARNING  ---------------------------------------------------------------",
        config.settings.issuer
    )
}

/// First commands, ready to paste.
fn quickstart_text(home: &DevConfig) -> String {
    let me = program_name();
    let key = |name| shell_quote(&home.key_file(name).to_string_lossy());
    let (maria, olga) = (key("maria"), key("olga"));
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
            shell_quote(&home.dir().to_string_lossy())
        ));
    }
    text.push_str(&format!(
        "  {me} task open --agent triage --purpose \"contain INC-8841\" --max-duration 10m\n  \
         {me} token request --action case.read --target Case::INC-8841 --audience https://cases.soc.example\n  \
         {me} token request --action account.disable --target Account::ann --param end_sessions=true \
         --audience https://idp.soc.example --wait 60s\n\
         The last one waits for a person:  {me} request list --key {maria}\n\
         or, in a browser, with a passkey: {me} approver invite maria --key {olga}\n                                  \
         then the console at {}/console\n",
        home.config().settings.console_url
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seed_policy_is_ignored_when_one_is_active() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(seed_policy(dir.path(), &dir.path().join("data")).is_err());
    }
}
