//! Log lines: one line for each event, with invisible characters escaped.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::model::text::{escape_invisible, is_invisible};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object on each line, for machines.
    Json,
}

impl LogFormat {
    /// The format with this name in the configuration.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Text, Self::Json]
            .into_iter()
            .find(|format| format.as_str() == name)
    }

    /// The name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Makes the writer of each event's line.
///
/// INVARIANT (no log injection): every event is one line, and no text in it moves a terminal's cursor or turns its reading
/// direction. In text, invisible characters are shown as codes; in JSON they are escaped.
#[derive(Debug, Clone, Copy)]
struct LineMakeWriter<W> {
    format: LogFormat,
    to: W,
}

impl<W> LineMakeWriter<W> {
    /// Lines of this format into the writers of `to`.
    pub const fn new(format: LogFormat, to: W) -> Self {
        Self { format, to }
    }
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for LineMakeWriter<W> {
    type Writer = LineWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter {
            format: self.format,
            to: self.to.make_writer(),
        }
    }
}

/// The writer of one event's line.
#[derive(Debug)]
struct LineWriter<W> {
    format: LogFormat,
    to: W,
}

impl<W: Write> Write for LineWriter<W> {
    /// Takes a whole event: the subscriber writes each in one piece.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = match self.format {
            LogFormat::Text => escape_invisible(text),
            LogFormat::Json => escape_json_invisible(text),
        };
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// JSON text with every invisible character as its escape (RFC 8259 §7): outside of strings JSON has none but blanks.
fn escape_json_invisible(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_invisible(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Settings of logging and span export.
#[derive(Debug, Clone, Default)]
pub struct LogSettings {
    /// The format of log lines.
    pub format: LogFormat,
    /// The filter when `DIPYLON_LOG` is not set.
    pub default_filter: &'static str,
    /// The OTLP collector that gets spans of calls; only where the feature `otlp` is built in.
    pub otlp_endpoint: Option<String>,
}

/// Keeps span export running; the remaining spans are sent when it is dropped.
#[derive(Debug, Default)]
#[must_use]
pub struct LogGuard {
    #[cfg(feature = "otlp")]
    _traces: Option<super::traces::SpanExportGuard>,
}

/// Starts log lines on stderr, and span export where it is configured. In JSON an event's `span` holds the fields of its
/// call. Call it within a tokio runtime.
pub fn start(settings: &LogSettings) -> Result<LogGuard, LogStartError> {
    let filter = EnvFilter::try_from_env("DIPYLON_LOG")
        .unwrap_or_else(|_| EnvFilter::new(settings.default_filter));
    let writer = LineMakeWriter::new(settings.format, io::stderr as fn() -> io::Stderr);
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(writer);
    let layer = match settings.format {
        LogFormat::Text => layer.with_filter(filter).boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
    };
    let registry = tracing_subscriber::registry().with(layer);
    #[cfg(feature = "otlp")]
    if let Some(endpoint) = &settings.otlp_endpoint {
        let (export, traces) = super::traces::layer(endpoint)?;
        let _already = registry.with(export).try_init();
        return Ok(LogGuard {
            _traces: Some(traces),
        });
    }
    // A program that embeds the broker may have installed a subscriber already.
    let _already = registry.try_init();
    Ok(LogGuard::default())
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogStartError {
    /// Span export cannot start.
    #[cfg(feature = "otlp")]
    #[error(transparent)]
    Traces(#[from] super::traces::TracesError),
}

/// A caller's trace context: the fields of a valid W3C `traceparent` (Trace Context §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent<'a> {
    /// 32 hex digits, not all zero.
    pub trace: &'a str,
    /// 16 hex digits, not all zero.
    pub parent: &'a str,
}

impl<'a> TraceParent<'a> {
    /// Reads a `traceparent`; `None` unless it is valid.
    pub fn parse(traceparent: &'a str) -> Option<Self> {
        let hex = |text: &str, len: usize| {
            text.len() == len
                && text
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let nonzero = |text: &str| text.bytes().any(|b| b != b'0');
        let mut parts = traceparent.split('-');
        let (version, trace, parent, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // Versions after 00 may have more fields after the flags; ff is invalid.
        let at_end = parts.next().is_none();
        let valid = hex(version, 2)
            && version != "ff"
            && (at_end || version != "00")
            && hex(trace, 32)
            && nonzero(trace)
            && hex(parent, 16)
            && nonzero(parent)
            && hex(flags, 2);
        valid.then_some(Self { trace, parent })
    }

    /// Records the trace on a call's span.
    pub fn record_on(&self, span: &tracing::Span) {
        span.record("trace_id", tracing::field::display(self.trace));
        #[cfg(feature = "otlp")]
        super::traces::with_parent(span, self.trace, self.parent);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct CapturedOutput(Arc<Mutex<Vec<u8>>>);

    impl Write for CapturedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str = "a\nINFO forged\r\u{1b}[2J\u{202e}\u{9b}31m\u{200b}\u{e0041}\"}z";

    fn logged(format: LogFormat) -> String {
        let output = CapturedOutput::default();
        let to = output.clone();
        let writer = LineMakeWriter::new(format, move || to.clone());
        let builder = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(writer);
        let say = || {
            let span = tracing::info_span!("call", method = "m", request = tracing::field::Empty);
            let _in = span.enter();
            span.record("request", tracing::field::display(HOSTILE));
            tracing::info!(detail = HOSTILE, "{HOSTILE}");
            tracing::info!("next");
        };
        match format {
            LogFormat::Text => tracing::subscriber::with_default(builder.finish(), say),
            LogFormat::Json => {
                let json = builder.json().flatten_event(true).with_span_list(false);
                tracing::subscriber::with_default(json.finish(), say);
            }
        }
        let bytes = output.0.lock().expect("lock").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn text_log_injection_is_escaped() {
        let text = logged(LogFormat::Text);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.chars().all(|c| c == '\n' || !is_invisible(c)),
            "{text}"
        );
        assert!(text.contains("a<U+000A>INFO forged"), "{text}");
        assert!(text.ends_with("next\n"));
    }

    #[test]
    fn json_log_injection_is_escaped() {
        let text = logged(LogFormat::Json);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.chars().all(|c| c == '\n' || !is_invisible(c)),
            "{text}"
        );
        let line: serde_json::Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!(line["detail"], HOSTILE);
        assert_eq!(line["span"]["request"], HOSTILE);
        assert_eq!(line["span"]["method"], "m");
    }

    #[test]
    fn traceparent_validation() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let parsed = TraceParent::parse(&good).expect("valid");
        assert_eq!((parsed.trace, parsed.parent), (TRACE, "00f067aa0ba902b7"));
        let later = format!("cc-{TRACE}-00f067aa0ba902b7-01-later");
        assert!(TraceParent::parse(&later).is_some());
        for bad in [
            "",
            &good[..54],
            &good.to_uppercase(),
            &good.replacen("00-", "ff-", 1),
            &format!("{good}-more"),
            &format!(" {good}"),
            &good.replace(TRACE, &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replace("4bf9", "4b\n9"),
            &good.replace("4bf9", "4bfg"),
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad:?}");
        }
    }
}
