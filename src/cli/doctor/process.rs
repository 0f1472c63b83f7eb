//! The running process: whether it is the broker of this journal, and the way of its clients to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use super::stored::JournalSummary;
use super::{DoctorArgs, SKEW_S, check_key};
use crate::cli::finding::Finding;
use crate::cli::http_client::{self, HttpResponse};
use crate::cli::{Common, Output, grpc_probe};
use crate::client::{ConnectOptions, Transport};
use crate::config::Config;
use crate::model::{HttpOrigin, KeyId, Timestamp, format_seconds};

/// Checks whether a broker is running, and whether it is the one of this journal. True if it is.
pub(super) async fn check_process(
    common: &Common,
    config: &Config,
    summary: &JournalSummary,
) -> (Finding, bool) {
    let mut is_ours = false;
    let mut children = vec![check_external_url(config)];
    let listen = contact_address(config.listen);
    match TcpListener::bind(config.listen) {
        Ok(_free) => children.push(Finding::ok(format!(
            "{} is free: no broker is running",
            config.listen
        ))),
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            children.push(Finding::fail(
                format!("cannot listen on {}: {error}", config.listen),
                "`listen` must be an address of this host and a port that the broker's user may bind",
            ))
        }
        Err(_taken) if listen.ip().is_loopback() => {
            let (route, ready) = probe_listeners(common, config, listen).await;
            children.extend(check_response(&listen.to_string(), ready));
            let same = check_same_journal(&listen.to_string(), route.as_ref(), summary).await;
            is_ours = !same.is_failure();
            children.push(same);
        }
        Err(_taken) => children.push(Finding::warn(
            format!("{} is in use", config.listen),
            "not checked further, since only loopback is contacted: use --url to check that broker",
        )),
    }
    (Finding::group("broker", children), is_ours)
}

/// Checks the way of the clients, through `external_url`: where it is not the listener itself, a proxy is on it, which must
/// speak HTTP/2 and must not cut streams.
pub(super) async fn check_external_way(
    common: &Common,
    output: &Output,
    config: &Config,
    summary: &JournalSummary,
    args: &DoctorArgs,
) -> Finding {
    let url = &config.settings.external_url;
    let title = format!("way of clients, {url}");
    let direct = is_listener(url, config.listen);
    let certificate = config.tls.as_ref().map(|files| files.certificate.clone());
    let (route, ready) = first_route(common, url.as_str(), certificate, None).await;
    let Some(route) = route else {
        let error = ready.err().unwrap_or_default();
        let finding = Finding::warn(
            format!("{url} does not respond to this host: {error}"),
            "clients connect to `external_url`: check its name, the proxy and its certificate from where they run",
        );
        return Finding::group(title, vec![finding]);
    };
    let mut children = vec![check_same_journal(url.as_str(), Some(&route), summary).await];
    let hold = match args.stream_for {
        Some(seconds) => Some(seconds),
        None => (!direct).then_some(STREAM_S),
    };
    if let Some(hold) = hold {
        output.note(&format!(
            "dipylon: holding a stream through {url} for {hold} s"
        ));
    }
    children.extend(check_grpc(url.as_str(), &route, hold).await);
    if args.key.is_given() {
        let common = Common {
            url: Some(url.to_string()),
            ..common.clone()
        };
        children.push(check_key(&common, &args.key).await);
    }
    Finding::group(title, children)
}

/// Checks that gRPC and its streams come through.
pub(super) async fn check_grpc(url: &str, route: &Transport, hold_s: Option<u32>) -> Vec<Finding> {
    if let Err(error) = grpc_probe::check(route).await {
        return vec![Finding::fail(
            format!("gRPC does not come through {url}: {error}"),
            "every hop must speak HTTP/2, also from the proxy to the broker (Envoy: http2_protocol_options, nginx: grpc_pass): see examples/envoy",
        )];
    }
    let mut findings = vec![Finding::ok(format!("gRPC comes through {url} over HTTP/2"))];
    if let Some(seconds) = hold_s {
        let held = grpc_probe::hold_stream(route, Duration::from_secs(u64::from(seconds))).await;
        findings.push(match held {
            Ok(()) => Finding::ok(format!("a stream through {url} lasted {seconds} s")),
            Err(error) => Finding::fail(
                format!("a stream through {url} was cut: {error}"),
                "approvers and validators follow streams for hours: lift the proxy's timeout (Envoy: timeout 0s of the route, nginx: grpc_read_timeout)",
            ),
        });
    }
    findings
}

/// Whether a URL names the listener itself.
fn is_listener(url: &HttpOrigin, listen: SocketAddr) -> bool {
    let ip = match url.host() {
        "localhost" => Some(listen.ip()).filter(IpAddr::is_loopback),
        _ => url.ip(),
    };
    url.port() == listen.port()
        && ip.is_some_and(|ip| {
            ip == listen.ip() || (listen.ip().is_unspecified() && ip.is_loopback())
        })
}

/// The transport that reaches the broker on this host, and the response to a readiness probe.
async fn probe_listeners(
    common: &Common,
    config: &Config,
    listen: SocketAddr,
) -> (Option<Transport>, Result<HttpResponse, String>) {
    let certificate = config.tls.as_ref().map(|files| files.certificate.clone());
    let url = match certificate {
        Some(_) => config.settings.external_url.to_string(),
        None => format!("http://{listen}"),
    };
    first_route(common, &url, certificate, Some(listen)).await
}

/// The first transport over which a URL responds to a readiness probe. A certificate is trusted by --ca, by the broker's own
/// certificate file, or by the system's authorities.
async fn first_route(
    common: &Common,
    url: &str,
    certificate: Option<PathBuf>,
    at: Option<SocketAddr>,
) -> (Option<Transport>, Result<HttpResponse, String>) {
    let mut authorities = vec![common.ca.clone(), None];
    if certificate.is_some() {
        authorities.insert(1, certificate);
    }
    authorities.dedup();
    let mut response = Err("connection failed".to_owned());
    for ca in authorities {
        let reach = ConnectOptions {
            ca,
            socket: None,
            // A probe without credentials.
            allow_plain_http: true,
        };
        let route = match Transport::new(url, &reach) {
            Ok(route) => at.map_or_else(|| route.clone(), |at| route.clone().at(at)),
            Err(error) => {
                response = Err(error.to_string());
                continue;
            }
        };
        response = http_client::get(&route, "/readyz").await;
        if response.is_ok() {
            return (Some(route), response);
        }
    }
    (None, response)
}

/// Checks that the process on the listen address publishes a signing key of this journal.
async fn check_same_journal(
    authority: &str,
    route: Option<&Transport>,
    summary: &JournalSummary,
) -> Finding {
    let published = match route {
        Some(route) => http_client::get(route, "/.well-known/jwks.json").await,
        None => Err(String::new()),
    };
    let kids = |body: &str| -> Vec<String> {
        let set: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let keys = set.get("keys").and_then(|keys| keys.as_array()).cloned();
        let keys = keys.unwrap_or_default();
        keys.iter()
            .filter_map(|key| key.get("kid")?.as_str().map(str::to_owned))
            .collect()
    };
    let is_same = published.is_ok_and(|answer| {
        let kids = kids(&answer.text());
        let known = |(kid, _): &(KeyId, Timestamp)| kids.contains(&kid.to_string());
        summary.keys.iter().any(known)
    });
    if is_same {
        Finding::ok(format!(
            "{authority} is served by the broker of this journal"
        ))
    } else {
        Finding::fail(
            format!("{authority} is in use by another process"),
            "the broker cannot start there: stop that process, or change `listen`",
        )
    }
}

/// The detail of problem details (RFC 9457), or the text as it is.
fn problem_detail(body: &str) -> String {
    let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let detail = problem.get("detail").and_then(|detail| detail.as_str());
    detail.unwrap_or(body).to_owned()
}

/// Checks that a broker responds and is ready, and that its clock agrees with this host's.
pub(super) fn check_response(authority: &str, ready: Result<HttpResponse, String>) -> Vec<Finding> {
    let ready = match ready {
        Err(error) => {
            return vec![Finding::fail(
                format!("{authority} does not respond: {error}"),
                "check that a broker is running there and, with TLS, that --ca has the issuer of its certificate",
            )];
        }
        Ok(ready) => ready,
    };
    let mut findings = vec![match ready.status {
        200 => Finding::ok(format!("{authority} responds and is ready")),
        503 => Finding::fail(
            format!("{authority} responds: {}", problem_detail(&ready.text())),
            "the broker issues no tokens until it is ready: see the checks above",
        ),
        other => Finding::fail(
            format!("{authority} responds to /readyz with status {other}"),
            "this is not a Dipylon broker: check the address",
        ),
    }];
    if let Some(difference) = ready.clock_difference_ms() {
        let skew = difference.abs();
        let message = format!("clocks: {} apart", format_seconds(skew / 1_000));
        findings.push(if skew > SKEW_S * 1_000 {
            Finding::fail(message, "synchronize both clocks with the same time source: proofs and evidence are valid for seconds or minutes only")
        } else {
            Finding::ok("clocks agree")
        });
    }
    findings
}

/// Checks `external_url` against the listen address, without connecting to it.
fn check_external_url(config: &Config) -> Finding {
    let url = &config.settings.external_url;
    let (https, port) = (url.is_https(), url.port());
    let ip = match url.host() {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => url.ip(),
    };
    let listen = config.listen;
    match ip {
        Some(ip)
            if !https && ip.is_loopback() && listen.ip().is_loopback() && port != listen.port() =>
        {
            Finding::fail(
                format!("external_url {url} does not match the listen address {listen}"),
                "correct `external_url` or `listen`: clients connect to `external_url` and make proofs for it only",
            )
        }
        Some(ip) if ip == listen.ip() && port == listen.port() => {
            Finding::ok(format!("external_url {url} matches the listen address"))
        }
        Some(_) | None => Finding::ok(format!("external_url {url} must forward to {listen}")),
    }
}

/// The address at which a broker on this host is contacted.
fn contact_address(listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port()))
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::from((Ipv6Addr::LOCALHOST, listen.port()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => listen,
    }
}

/// How long a stream through a proxy is held, in seconds: a second longer than Envoy's default timeout of a route.
const STREAM_S: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_url_is_compared_with_the_listen_address() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("dipylon.toml");
        for (url, level, direct) in [
            ("http://127.0.0.1:1", "[ok]", true),
            ("http://localhost:1", "[ok]", true),
            ("http://127.0.0.1:2", "[fail]", false),
            ("https://broker.example", "[ok]", false),
        ] {
            let text = format!(
                "realm = \"r\"\nlisten = \"127.0.0.1:1\"\nexternal_url = \"{url}\"\ndata_dir = \"data\"\nkey_dir = \"keys\"\n"
            );
            std::fs::write(&file, text).expect("written");
            let config = Config::read(&file).expect("good");
            let mut shown = String::new();
            check_external_url(&config).lines(0, &mut shown);
            assert!(shown.starts_with(level), "{url}: {shown}");
            let found = is_listener(&config.settings.external_url, config.listen);
            assert_eq!(found, direct, "{url}");
        }
    }
}
