//! `doctor`: checks of the configuration, files, journal, policy and running broker, with advice. Reads only, with or without
//! a running broker.

mod process;
mod stored;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::connect::KeyArgs;
use super::error::CliError;
use super::finding::{Finding, print_findings};
use super::{Common, Output, config_checks, connect, dev, http_client, parse};
use crate::client::Transport;
use crate::clock::Clock;
use crate::config::{Config, ConfigOverrides};

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The configuration of the broker on this host [default: the development broker's, without --url]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long a stream to the broker is held, to see whether a proxy cuts it [default: 16s where a proxy is in front of the
    /// broker of --config, else no stream]
    #[arg(long, value_name = "DURATION", value_parser = parse::seconds)]
    stream_for: Option<u32>,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) async fn run(
    common: &Common,
    output: &Output,
    args: DoctorArgs,
) -> Result<ExitCode, CliError> {
    let mut findings = Vec::new();
    let file = match (&args.config, &common.url) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(dev::DevConfig::load(common)?.dir().join(dev::CONFIG_FILE)),
    };
    if let Some(file) = file {
        let (finding, config) =
            config_checks::check_configuration(&file, &ConfigOverrides::default());
        findings.push(finding);
        if let Some(config) = config {
            findings.extend(check_local(common, output, &config, &args).await);
        }
    }
    if let (None, Some(url)) = (&args.config, &common.url) {
        findings.push(check_remote(common, url, &args).await);
    }
    Ok(print_findings(output, findings))
}

/// Checks the broker of this host: its files first, then its process, then the way of its clients.
async fn check_local(
    common: &Common,
    output: &Output,
    config: &Config,
    args: &DoctorArgs,
) -> Vec<Finding> {
    let clock = Clock::system();
    let (journal, mut read) = stored::check_journal(&config.data_dir, &clock);
    let mut findings = vec![
        config_checks::check_files(config),
        config_checks::check_trust_domains(config),
        journal,
        stored::check_disk(config),
        stored::check_signing_key(config, &read, clock.now()),
    ];
    findings.extend(Some(config_checks::check_journal(config)).filter(Finding::is_failure));
    findings.extend(stored::check_trust_in_force(config, &read));
    findings.extend(stored::check_active_policy(config, &read));
    findings.append(&mut read.operators);
    findings.push(config_checks::check_transport(config));
    findings.extend(config_checks::check_certificate(config, clock.now()));
    let (process, is_running) = process::check_process(common, config, &read).await;
    findings.push(process);
    if is_running {
        findings.push(process::check_external_way(common, output, config, &read, args).await);
    }
    findings
}

/// Checks a broker by its URL and, with a key, whether the key is registered.
async fn check_remote(common: &Common, url: &str, args: &DoctorArgs) -> Finding {
    let mut children = Vec::new();
    match Transport::new(url.trim_end_matches('/'), &connect::connect_options(common)) {
        Ok(route) => {
            let ready = http_client::get(&route, "/readyz").await;
            let responds = ready.is_ok();
            children.extend(process::check_response(url, ready));
            if responds {
                children.extend(process::check_grpc(url, &route, args.stream_for).await);
            }
        }
        Err(error) => children.extend(process::check_response(url, Err(error.to_string()))),
    }
    if args.key.is_given() {
        children.push(check_key(common, &args.key).await);
    }
    Finding::group(format!("broker {url}"), children)
}

/// Checks that a key is registered, by a call.
async fn check_key(common: &Common, key: &KeyArgs) -> Finding {
    let approver = match key.approver_client(common) {
        Err(error) => return Finding::fail(error.message, "give your own key with --key"),
        Ok(approver) => approver,
    };
    match approver.access_requests().await {
        Ok(waiting) => Finding::ok(format!(
            "the key is registered; {} access requests are waiting",
            waiting.len()
        )),
        Err(error) => Finding::fail(
            error.to_string(),
            error
                .next()
                .unwrap_or("check that the URL is the broker's `external_url`"),
        ),
    }
}

/// Largest difference of two clocks, in seconds, at which valid proofs are accepted reliably.
const SKEW_S: i64 = 5;
