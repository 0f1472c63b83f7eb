//! Spans of calls for an OTLP collector, over gRPC. What is exported is what the log says of a call, and no more.

use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::{Level, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

/// Spans that wait to be sent; the next are dropped.
const QUEUE_MAX: usize = 2_048;
/// How often they are sent.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for the collector.
const SEND_MAX: Duration = Duration::from_secs(5);

/// Why no spans can be exported.
#[derive(Debug, thiserror::Error)]
#[error("otlp_endpoint: {0}")]
pub struct TracesError(String);

/// Sends what is left when it is dropped.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(SEND_MAX) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// A layer that exports spans to the collector at `endpoint`. Call it within a tokio runtime.
pub fn layer<S>(endpoint: &str) -> Result<(impl Layer<S> + use<S>, Traces), TracesError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(SEND_MAX)
        .build()
        .map_err(|e| TracesError(e.to_string()))?;
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_MAX)
        .with_scheduled_delay(SEND_EVERY)
        .build();
    let resource = Resource::builder_empty()
        .with_attribute(KeyValue::new("service.name", "dipylon"))
        .build();
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(
            BatchSpanProcessor::builder(exporter)
                .with_batch_config(batch)
                .build(),
        )
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("dipylon"))
        .with_location(false)
        .with_threads(false)
        .with_filter(ours());
    Ok((layer, Traces(provider)))
}

/// Our own spans at the level of the usual log. The exporter's own would beget each other.
fn ours() -> FilterFn {
    filter_fn(|metadata| {
        metadata.target().starts_with("dipylon") && *metadata.level() <= Level::INFO
    })
}

/// Makes a span part of its caller's trace. `trace` and `parent` are the hex fields of a valid `traceparent`.
pub fn part_of(span: &tracing::Span, trace: &str, parent: &str) {
    let (Ok(trace), Ok(parent)) = (TraceId::from_hex(trace), SpanId::from_hex(parent)) else {
        return;
    };
    // Whether it is exported is decided here, not by the caller.
    let flags = TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, parent, flags, true, TraceState::NONE);
    let _none_exported = span.set_parent(Context::new().with_remote_span_context(context));
}
