use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use super::WorkloadApi;
use crate::model::Secret;

/// A source of JWT-SVIDs, read again for each call that sends one: they are short-lived.
#[derive(Clone)]
pub enum EvidenceSource {
    /// A fixed JWT-SVID.
    Fixed(Secret),
    /// A file that another process keeps fresh; read each time, without its last newline.
    File(PathBuf),
    /// The SPIFFE agent of this machine.
    WorkloadApi(WorkloadApi),
    /// A function; its error is one line without a secret.
    Fn(Arc<EvidenceFn>),
}

/// A function that returns evidence.
pub type EvidenceFn = dyn Fn() -> Result<Secret, String> + Send + Sync;

/// Why there is no evidence to send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The file could not be read.
    #[error("evidence file {path}: {kind}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        kind: io::ErrorKind,
    },
    /// The SPIFFE agent returned none.
    #[error("Workload API at {socket}: {cause}")]
    WorkloadApi {
        /// The agent's socket.
        socket: String,
        /// The cause.
        cause: String,
    },
    /// Empty, too long, or with a blank in it.
    #[error("evidence: expected 1 to 16384 visible ASCII characters without a space")]
    Form,
    /// The function failed.
    #[error("evidence: {0}")]
    Other(String),
}

/// Longest evidence, in bytes.
const EVIDENCE_BYTES_MAX: usize = 16 * 1024;

impl EvidenceSource {
    /// The evidence to send now.
    pub async fn fetch(&self) -> Result<Secret, EvidenceError> {
        let evidence = match self {
            Self::Fixed(evidence) => evidence.clone(),
            Self::File(path) => {
                let mut text = Zeroizing::new(String::new());
                let read = async {
                    let file = tokio::fs::File::open(path).await?;
                    let limit = u64::try_from(EVIDENCE_BYTES_MAX + 2).unwrap_or(u64::MAX);
                    file.take(limit).read_to_string(&mut text).await
                };
                read.await.map_err(|error| EvidenceError::File {
                    path: path.clone(),
                    kind: error.kind(),
                })?;
                Secret::new(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            Self::WorkloadApi(agent) => agent.fetch().await?,
            Self::Fn(give) => give().map_err(EvidenceError::Other)?,
        };
        let text = evidence.expose_secret();
        if (1..=EVIDENCE_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic())
        {
            Ok(evidence)
        } else {
            Err(EvidenceError::Form)
        }
    }
}

impl fmt::Debug for EvidenceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(_) => f.write_str("Fixed(redacted)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::WorkloadApi(agent) => agent.fmt(f),
            Self::Fn(_) => f.write_str("Fn"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn file_is_read_on_each_fetch() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("svid");
        let source = EvidenceSource::File(path.clone());
        assert!(matches!(
            source.fetch().await,
            Err(EvidenceError::File { .. })
        ));
        for text in ["first", "second"] {
            std::fs::write(&path, format!("{text}\n")).expect("write");
            assert_eq!(
                source.fetch().await.expect("evidence").expose_secret(),
                text
            );
        }
        for bad in ["", "\n", "a b", "a\nb", "é"] {
            std::fs::write(&path, bad).expect("write");
            assert_eq!(
                source.fetch().await.err(),
                Some(EvidenceError::Form),
                "{bad:?}"
            );
        }
        std::fs::write(&path, "x".repeat(EVIDENCE_BYTES_MAX + 1)).expect("write");
        assert_eq!(source.fetch().await.err(), Some(EvidenceError::Form));
    }

    #[test]
    fn debug_redacts_evidence() {
        let source = EvidenceSource::Fixed(Secret::new("s3cr3t".to_owned()));
        assert!(!format!("{source:?}").contains("s3cr3t"));
    }
}
