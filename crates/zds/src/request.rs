//! What the agent asks of ztunnel.

use crate::message::{self, RequestPayload, WorkloadRequest};
use crate::{DecodeError, EncodeError, MAX_REQUEST};
use prost::Message;
use std::fmt;

/// Who a pod is: the key of its identity, `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkloadInfo {
    /// Name of the pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// One request; each gets exactly one [`crate::Response`], in order.
///
/// A pod is named by the uid that Kubernetes gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run a proxy in the pod's network namespace, whose descriptor travels in the
    /// same packet.
    ///
    /// There is no Add without `info`: ztunnel would end itself.
    Add {
        /// The pod.
        uid: String,
        /// Who it is.
        info: WorkloadInfo,
    },
    /// The proxy of a pod whose namespace is not at hand shall go on. Before
    /// SnapshotSent only: afterwards ztunnel ends itself.
    Keep {
        /// The pod.
        uid: String,
    },
    /// The proxy of a pod shall end.
    Del {
        /// The pod.
        uid: String,
    },
    /// All pods have been named; ztunnel ends the proxies of others. Once a
    /// connection: at the second ztunnel ends itself.
    SnapshotSent,
}

impl Request {
    /// The packet.
    ///
    /// # Errors
    /// When ztunnel would not take it.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        if self.uid() == Some("") {
            return Err(EncodeError::NoUid { request: self.to_string() });
        }
        let message = WorkloadRequest { payload: Some(self.clone().into_payload()) };
        let bytes = message.encoded_len();
        if bytes > MAX_REQUEST {
            let request = self.to_string();
            return Err(EncodeError::TooLong { request, bytes, limit: MAX_REQUEST });
        }
        Ok(message.encode_to_vec())
    }

    /// Reads a packet, as ztunnel does.
    ///
    /// # Errors
    /// See [`DecodeError`]: what ztunnel does about one depends on which it is.
    pub fn decode(packet: &[u8]) -> Result<Self, DecodeError> {
        let (message, bytes) = ("request", packet.len());
        let decoded = WorkloadRequest::decode(packet).map_err(|source| DecodeError::Malformed {
            message,
            bytes,
            source,
        })?;
        match decoded.payload {
            None => Err(DecodeError::NoPayload { message, bytes }),
            Some(RequestPayload::Add(add)) => match add.workload_info {
                None => Err(DecodeError::NoWorkloadInfo { uid: add.uid }),
                Some(info) => Ok(Self::Add { uid: add.uid, info: info.into() }),
            },
            Some(RequestPayload::Keep(keep)) => Ok(Self::Keep { uid: keep.uid }),
            Some(RequestPayload::Del(del)) => Ok(Self::Del { uid: del.uid }),
            Some(RequestPayload::SnapshotSent(message::SnapshotSent {})) => Ok(Self::SnapshotSent),
        }
    }

    /// The pod it is about; none for SnapshotSent.
    #[must_use]
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Add { uid, .. } | Self::Keep { uid } | Self::Del { uid } => Some(uid),
            Self::SnapshotSent => None,
        }
    }

    fn into_payload(self) -> RequestPayload {
        match self {
            Self::Add { uid, info } => RequestPayload::Add(message::AddWorkload {
                uid,
                workload_info: Some(message::WorkloadInfo {
                    name: info.name,
                    namespace: info.namespace,
                    service_account: info.service_account,
                }),
            }),
            Self::Keep { uid } => RequestPayload::Keep(message::KeepWorkload { uid }),
            Self::Del { uid } => RequestPayload::Del(message::DelWorkload { uid }),
            Self::SnapshotSent => RequestPayload::SnapshotSent(message::SnapshotSent {}),
        }
    }
}

impl From<message::WorkloadInfo> for WorkloadInfo {
    fn from(info: message::WorkloadInfo) -> Self {
        Self { name: info.name, namespace: info.namespace, service_account: info.service_account }
    }
}

/// `add of pod shop/web-0 (uid 12ab)`. Long names are cut short.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { uid, info } => write!(
                f,
                "add of pod {}/{} (uid {})",
                Short(&info.namespace),
                Short(&info.name),
                Short(uid)
            ),
            Self::Keep { uid } => write!(f, "keep of uid {}", Short(uid)),
            Self::Del { uid } => write!(f, "del of uid {}", Short(uid)),
            Self::SnapshotSent => f.write_str("snapshot sent"),
        }
    }
}

/// A name as it is shown: Kubernetes' longest is 253 characters.
struct Short<'a>(&'a str);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 253;
        let end = self.0.char_indices().nth(LONGEST).map(|(at, _)| at);
        let shown = end.and_then(|end| self.0.get(..end)).unwrap_or(self.0);
        write!(f, "{}", shown.escape_debug())?;
        if end.is_some() { f.write_str("...") } else { Ok(()) }
    }
}
