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
use super::finding::Finding;
use super::shell::{program_name, shell_quote};
use super::{Common, Output, config_checks, files, policy_dir, sd_notify};
use crate::broker::{Broker, BrokerOptions};
use crate::clock::Clock;
use crate::config::{AdminAddress, Config, ConfigOverrides};
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
    /// Write {"grpc", "http", "console", "admin", "pid", "checkpoint"} to this file once the broker accepts calls
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
    let (config, dev_config, warnings) = load_config(common, &args)?;
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
    for warning in warnings {
        tracing::error!("started nevertheless: {warning}");
    }
    if config.dev {
        output.note(&dev_warning(&config));
    }
    if let Some(path) = &args.ready_file {
        // A killed broker leaves its file: processes that wait for the file must see this start only.
        let _ignored = std::fs::remove_file(path);
    }
    // Bound before the journal is opened: a second broker on the same port fails without touching it.
    let listeners = bind_listeners(&config)
        .await
        .map_err(|e| CliError::failed(e.to_string()))?;
    let admin = bind_admin_listener(config.admin_listen.as_ref()).await?;
    let admin_address = admin.as_ref().map(AdminListener::display_address);
    let seed = config
        .policy
        .as_deref()
        .map(|dir| seed_policy(dir, &config.data_dir))
        .transpose()?
        .flatten();
    let no_seed = seed.is_none() && config.policy.is_none();
    let options = broker_options(&config, seed)?;
    let broker = Broker::open(options)
        .await
        .map_err(|e| CliError::failed(e.to_string()))?;
    let checkpoint = broker.journal().head().borrow().checkpoint.to_string();
    if let Err(why) = broker.readiness() {
        let hint = if no_seed {
            "; apply a policy bundle with the code below, or start with --policy DIR"
        } else {
            ""
        };
        output.note(&format!("dipylon: every request is denied: {why}{hint}"));
        if let Some(code) = broker.bootstrap_code().filter(|_| !config.dev) {
            output.warn(&first_operator_text(
                config.settings.external_url.as_str(),
                &code,
            ));
        }
    }
    let url = config.settings.external_url.as_str();
    let ready = json!({
        "grpc": url,
        "http": url,
        "console": format!("{}/console", config.settings.console_url),
        "admin": admin_address,
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
            if let Some(address) = &admin_address {
                text.push_str(&format!(
                    "admin      {address}: /metrics, /livez, /readyz\n"
                ));
            }
            if let Some(dev_config) = &dev_config {
                text.push_str(&quickstart_text(dev_config));
            }
            text
        },
    );
    let admin_server =
        admin.map(|listener| tokio::spawn(serve::serve_admin(broker.clone(), listener)));
    let stop = stop_signal(args.stop_with_stdin)?;
    tracing::info!(url, pid = std::process::id(), checkpoint, "started");
    let stop = async move {
        stop.await;
        tracing::info!("stopping: finishing calls in flight");
        sd_notify::send(sd_notify::STOPPING);
    };
    sd_notify::send(sd_notify::READY);
    let served = serve::serve(broker, listeners, stop).await;
    if let Some(admin_server) = admin_server {
        admin_server.abort();
    }
    if let Some(path) = &args.ready_file {
        let _ignored = std::fs::remove_file(path);
    }
    served.map_err(|e| CliError::failed(e.to_string()))?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// What a broker of this configuration is opened with.
pub(super) fn broker_options(
    config: &Config,
    seed: Option<BundleFiles>,
) -> Result<BrokerOptions, CliError> {
    let mut trust = Vec::new();
    for (domain, file) in &config.trust_domains {
        trust.push((domain.clone(), config_checks::read_trust_bundle(file)?));
    }
    Ok(BrokerOptions {
        settings: config.settings.clone(),
        data_dir: config.data_dir.clone(),
        key: keys::signing_key(&config.key_dir, &config.data_dir)?,
        trust,
        seed,
        clock: Clock::system(),
        faults: FaultInjection::default(),
    })
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

/// Binds the configured listeners.
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

/// Raises the open-file limit to what `connections.max` needs, and logs a warning if the system allows fewer.
fn raise_fd_limit(max: usize, unix: bool) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let listeners = if unix { 2 } else { 1 };
    let needed = u64::try_from(max)
        .unwrap_or(u64::MAX)
        .saturating_mul(listeners)
        .saturating_add(OWN_FILES);
    let limit = getrlimit(Resource::Nofile);
    // No limit is enough.
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if enough(limit.current) {
        return;
    }
    let raised = Rlimit {
        current: Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed))),
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() || !enough(limit.maximum) {
        tracing::warn!(
            needed,
            allowed = ?limit.maximum,
            "RLIMIT_NOFILE is lower than connections.max: raise the limit (ulimit -n, LimitNOFILE) or lower connections.max"
        );
    }
}

/// Open files of the broker besides connections: the journal, listening sockets, files being read.
const OWN_FILES: u64 = 64;

async fn bind_admin_listener(
    address: Option<&AdminAddress>,
) -> Result<Option<AdminListener>, CliError> {
    let listener = match address {
        None => return Ok(None),
        Some(AdminAddress::Tcp(address)) => AdminListener::tcp(*address).await,
        Some(AdminAddress::Unix(path)) => AdminListener::unix(path),
    };
    listener.map(Some).map_err(io_error("admin_listen"))
}

/// Reads the configuration and checks everything that decides whether the broker starts, as `config check` does. Returns the
/// failures with which it starts nevertheless too.
fn load_config(
    common: &Common,
    args: &ServeArgs,
) -> Result<(Config, Option<DevConfig>, Vec<String>), CliError> {
    let (file, overrides, dev_config) = match &args.config {
        Some(file) => {
            let overrides = ConfigOverrides {
                listen: args.listen,
                data_dir: args.data_dir.clone(),
                policy: args.policy.clone(),
            };
            (file.clone(), overrides, None)
        }
        None => {
            let dev_config = load_dev_config(common, args)?;
            let overrides = ConfigOverrides {
                policy: args.policy.clone(),
                ..ConfigOverrides::default()
            };
            let file = dev_config.dir().join(dev::CONFIG_FILE);
            (file, overrides, Some(dev_config))
        }
    };
    let (finding, config) = config_checks::check_configuration(&file, &overrides);
    let (mut failures, mut warnings) = (finding.start_failures(), Vec::new());
    if let Some(config) = &config {
        let checked = config_checks::check_start(config, Clock::system().now());
        failures.extend(checked.iter().flat_map(Finding::start_failures));
        warnings.extend(checked.iter().flat_map(Finding::start_warnings));
    }
    match config {
        Some(config) if failures.is_empty() => Ok((config, dev_config, warnings)),
        Some(_) | None => Err(
            CliError::failed(failures.join("\n")).with_next_step(format!(
                "'dipylon config check {}' repeats these checks",
                shell_quote(&file.to_string_lossy())
            )),
        ),
    }
}

/// The development configuration, created at the first start.
fn load_dev_config(common: &Common, args: &ServeArgs) -> Result<DevConfig, CliError> {
    if let Some(listen) = args.listen.filter(|listen| !listen.ip().is_loopback()) {
        return Err(dev::not_loopback(listen));
    }
    let given = args.data_dir.as_ref().or(common.dev_dir.as_ref());
    let dir = match given {
        Some(dir) => dir.clone(),
        None => dev::default_dir()?,
    };
    let (dev_config, made) = DevConfig::prepare(&dir, args.listen, args.policy.as_deref())?;
    let listen = dev_config.config().listen;
    match args.listen {
        Some(asked) if !made && asked.port() != 0 && asked != listen => Err(CliError::usage(
            format!("cannot listen on {asked}: this development broker was created for {listen}"),
        )
        .with_next_step(format!(
            "leave out --listen, or delete {} to start over: proofs and tokens name its URL",
            dev_config.dir().display()
        ))),
        Some(_) | None => Ok(dev_config),
    }
}

/// The files that seed an empty journal. With an existing journal, a policy directory that cannot be read is only logged:
/// an unfinished edit must not prevent a restart.
fn seed_policy(dir: &Path, data_dir: &Path) -> Result<Option<BundleFiles>, CliError> {
    let files = policy_dir::read_trusted(dir).and_then(|files| {
        BundleFiles::new(files)
            .map_err(|e| CliError::failed(format!("policy bundle {}:\n{e}", dir.display())))
    });
    match files {
        Ok(files) => Ok(Some(files)),
        Err(error) if JournalReader::open(data_dir).is_ok() => {
            tracing::warn!(policy = %dir.display(), "policy directory ignored: it seeds only an empty journal: {}", error.message);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Resolves on SIGTERM, SIGINT or, with `with_stdin`, the end of stdin.
fn stop_signal(with_stdin: bool) -> Result<impl Future<Output = ()>, CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(io_error("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("SIGINT"))?;
    // Handled so that it does not end the broker: supervisors send it to reload files.
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
                _ = hangup.recv() => tracing::info!("SIGHUP: the certificate is reloaded; other settings need a restart"),
            }
        }
    })
}

/// Instructions for the first operator. Printed, never logged: the code is a secret.
fn first_operator_text(url: &str, code: &Secret) -> String {
    format!(
        "FIRST OPERATOR  one-time code {}\n                \
         valid for ten minutes and one policy bundle, which must list your key as an operator's:\n                \
         dipylon policy apply DIR --url {} --key KEY.pem --code",
        code.expose_secret(),
        shell_quote(url)
    )
}

fn dev_warning(config: &Config) -> String {
    format!(
        "WARNING  ---------------------------------------------------------------\n\
         WARNING  DEVELOPMENT broker: example policy, generated keys, loopback only. Not for production.\n\
         WARNING  A user who can read its directory can act as every person, service and agent.\n\
         WARNING  issuer {}\n\
         WARNING  ---------------------------------------------------------------",
        config.settings.issuer
    )
}

/// The first commands to try, ready to paste.
fn quickstart_text(dev_config: &DevConfig) -> String {
    let program = program_name();
    let key = |name| shell_quote(&dev_config.key_file(name).to_string_lossy());
    let (maria, olga) = (key("maria"), key("olga"));
    let mut text = format!(
        "\nIn another terminal:\n  export DIPYLON_URL={}\n",
        dev_config.config().settings.external_url
    );
    if dev::default_dir()
        .ok()
        .and_then(|dir| dir.canonicalize().ok())
        .is_none_or(|dir| dir != dev_config.dir())
    {
        text.push_str(&format!(
            "  export DIPYLON_DEV={}\n",
            shell_quote(&dev_config.dir().to_string_lossy())
        ));
    }
    text.push_str(&format!(
        "  {program} task open --agent triage --purpose \"contain INC-8841\" --max-duration 10m\n  \
         {program} token request --action case.read --target Case::INC-8841 --audience https://cases.soc.example\n  \
         {program} token request --action account.disable --target Account::ann --param end_sessions=true \
         --audience https://idp.soc.example --wait 60s\n\
         The last one waits for approval:  {program} request list --key {maria}\n\
         or, in a browser, with a passkey: {program} approver invite maria --key {olga}\n                                  \
         then the console at {}/console\n",
        dev_config.config().settings.console_url
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
