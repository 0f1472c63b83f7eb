//! Log lines: one for each event, whatever is in it.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::model::text::{escape_invisible, is_invisible};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object on each line, for machines.
    Json,
}

impl Format {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Where lines go, one whole event at a time.
///
/// INVARIANT (no log injection): whatever an event says, it is one line, and nothing in it moves a terminal's cursor or
/// turns its reading direction. In text the invisible is shown as codes; in JSON it is escaped.
#[derive(Debug, Clone, Copy)]
struct Lines<W> {
    format: Format,
    to: W,
}

impl<W> Lines<W> {
    /// Lines of this format into what `to` makes.
    pub const fn new(format: Format, to: W) -> Self {
        Self { format, to }
    }
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Lines<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line {
            format: self.format,
            to: self.to.make_writer(),
        }
    }
}

/// One event's line.
#[derive(Debug)]
struct Line<W> {
    format: Format,
    to: W,
}

impl<W: Write> Write for Line<W> {
    /// Takes an event whole: the subscriber hands each over in one piece.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = match self.format {
            Format::Text => escape_invisible(text),
            Format::Json => escape(text),
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
fn escape(json: &str) -> String {
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

/// What a broker says of itself, and where.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// How lines are written.
    pub format: Format,
    /// The filter where `DIPYLON_LOG` says nothing.
    pub usual: &'static str,
    /// The OTLP collector that gets spans of calls; only where the feature `otlp` is built in.
    pub otlp_endpoint: Option<String>,
}

/// Kept while a broker speaks; what is left to be sent is sent when it is dropped.
#[derive(Debug, Default)]
#[must_use]
pub struct Speaking {
    #[cfg(feature = "otlp")]
    _traces: Option<super::traces::Traces>,
}

/// Begins to write lines to stderr, and to export spans where that is asked for. In JSON the fields of the call an event
/// belongs to lie in its `span`. Call it within a tokio runtime.
pub fn start(settings: &Settings) -> Result<Speaking, StartError> {
    let usual = || EnvFilter::new(settings.usual);
    let filter = EnvFilter::try_from_env("DIPYLON_LOG").unwrap_or_else(|_| usual());
    let lines = Lines::new(settings.format, io::stderr as fn() -> io::Stderr);
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(lines);
    let layer = match settings.format {
        Format::Text => layer.with_filter(filter).boxed(),
        Format::Json => layer
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
        let (exporting, traces) = super::traces::layer(endpoint)?;
        let _already = registry.with(exporting).try_init();
        return Ok(Speaking {
            _traces: Some(traces),
        });
    }
    // Whoever embeds the broker may have a subscriber already.
    let _already = registry.try_init();
    Ok(Speaking::default())
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No spans can be exported.
    #[cfg(feature = "otlp")]
    #[error(transparent)]
    Traces(#[from] super::traces::TracesError),
}

/// A caller's place in a trace: the fields of a valid W3C `traceparent` (Trace Context §3.2).
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
        // Later versions may go on after the flags; version 00 may not, and ff is none.
        let ended = parts.next().is_none();
        let valid = hex(version, 2)
            && version != "ff"
            && (ended || version != "00")
            && hex(trace, 32)
            && nonzero(trace)
            && hex(parent, 16)
            && nonzero(parent)
            && hex(flags, 2);
        valid.then_some(Self { trace, parent })
    }

    /// Writes it down for a call's span.
    pub fn note(&self, span: &tracing::Span) {
        span.record("trace_id", tracing::field::display(self.trace));
        #[cfg(feature = "otlp")]
        super::traces::part_of(span, self.trace, self.parent);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("kept").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str = "a\nINFO forged\r\u{1b}[2J\u{202e}\u{9b}31m\u{200b}\u{e0041}\"}z";

    fn said(format: Format) -> String {
        let kept = Kept::default();
        let to = kept.clone();
        let lines = Lines::new(format, move || to.clone());
        let builder = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(lines);
        let say = || {
            let span = tracing::info_span!("call", method = "m", request = tracing::field::Empty);
            let _in = span.enter();
            span.record("request", tracing::field::display(HOSTILE));
            tracing::info!(detail = HOSTILE, "{HOSTILE}");
            tracing::info!("next");
        };
        match format {
            Format::Text => tracing::subscriber::with_default(builder.finish(), say),
            Format::Json => {
                let json = builder.json().flatten_event(true).with_span_list(false);
                tracing::subscriber::with_default(json.finish(), say);
            }
        }
        let bytes = kept.0.lock().expect("kept").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_hostile_text_is_one_line_of_text() {
        let text = said(Format::Text);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.chars().all(|c| c == '\n' || !is_invisible(c)),
            "{text}"
        );
        assert!(text.contains("a<U+000A>INFO forged"), "{text}");
        assert!(text.ends_with("next\n"));
    }

    #[test]
    fn a_hostile_text_is_one_object_of_json() {
        let text = said(Format::Json);
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
    fn only_a_valid_traceparent_is_taken() {
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
