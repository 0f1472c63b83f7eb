//! Span export: spans of calls for an OTLP collector, over gRPC. A span holds the fields of the call's log lines, and no more.

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

/// Spans that may wait for export; further ones are dropped.
const QUEUE_MAX: usize = 2_048;
/// Time between two exports.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("`otlp_endpoint`: {0}")]
pub struct TracesError(String);

/// Exports the remaining spans when it is dropped.
#[derive(Debug)]
pub struct SpanExportGuard(SdkTracerProvider);

impl Drop for SpanExportGuard {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!(%error, "final span export failed");
        }
    }
}

/// A layer that exports spans to the collector at `endpoint`. Call it within a tokio runtime.
pub fn layer<S>(endpoint: &str) -> Result<(impl Layer<S> + use<S>, SpanExportGuard), TracesError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|e| TracesError(e.to_string()))?;
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_MAX)
        .with_scheduled_delay(EXPORT_INTERVAL)
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
        .with_filter(own_spans());
    Ok((layer, SpanExportGuard(provider)))
}

/// The broker's own spans. Exporting the exporter's spans would never end.
fn own_spans() -> FilterFn {
    filter_fn(|metadata| {
        metadata.target().starts_with("dipylon") && *metadata.level() <= Level::INFO
    })
}

/// Gives a span its caller's span as parent. `trace` and `parent` are the hex fields of a valid `traceparent`.
pub fn with_parent(span: &tracing::Span, trace: &str, parent: &str) {
    let (Ok(trace), Ok(parent)) = (TraceId::from_hex(trace), SpanId::from_hex(parent)) else {
        return;
    };
    // The broker decides what is exported, not the caller's sampling flag.
    let flags = TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, parent, flags, true, TraceState::NONE);
    let _not_exported = span.set_parent(Context::new().with_remote_span_context(context));
}
