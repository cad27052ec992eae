//! What is wrong with a message.

/// Why a message is not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// ztunnel would cut it off, and drop the connection.
    #[error(
        "{request} has {bytes} bytes, ztunnel takes {limit}: its names are longer than \
         Kubernetes allows"
    )]
    TooLong {
        /// The request and its pod.
        request: String,
        /// How long it would be.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// A request for a pod has no uid, which is all that ztunnel knows it by.
    #[error("{request} has no uid: a pod is known by the uid that Kubernetes gave it")]
    NoUid {
        /// The request and its pod.
        request: String,
    },
    /// It would be an empty packet, which the other side takes for the end.
    #[error("{message} would be an empty packet, which means the end of the connection")]
    Empty {
        /// The message.
        message: String,
    },
}

/// Why a packet is not the message it was to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is not protobuf, or has a field of another type.
    #[error("{message} of {bytes} bytes is not its protobuf message")]
    Malformed {
        /// Which message it was to be.
        message: &'static str,
        /// Its length.
        bytes: usize,
        /// What prost says.
        source: prost::DecodeError,
    },
    /// Nothing is in it that this side knows: empty, or of a newer version.
    #[error("{message} of {bytes} bytes has no payload that is known here")]
    NoPayload {
        /// Which message it was to be.
        message: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// An Add does not say who the pod is. ztunnel ends itself over this.
    #[error("add of pod {uid} has no workload_info")]
    NoWorkloadInfo {
        /// The pod.
        uid: String,
    },
    /// Its end is missing, and it is none of those of which a part will do.
    #[error("{message} was cut off after {bytes} bytes")]
    CutOff {
        /// Which message it was to be.
        message: &'static str,
        /// How much arrived.
        bytes: usize,
    },
}
