//! The messages as protobuf has them. Written by hand: a generated file would need
//! a compiler for the schema at build time, for six messages.
//!
//! Numbers that are missing here are reserved or were never used: a request's 4,
//! a workload's 4 (`trust_domain`), and a Del's 1.

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ZdsHello {
    #[prost(int32, tag = "1")]
    pub(crate) version: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WorkloadRequest {
    #[prost(oneof = "RequestPayload", tags = "1, 2, 3, 5")]
    pub(crate) payload: Option<RequestPayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum RequestPayload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AddWorkload {
    #[prost(string, tag = "1")]
    pub(crate) uid: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) workload_info: Option<WorkloadInfo>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WorkloadInfo {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) namespace: String,
    #[prost(string, tag = "3")]
    pub(crate) service_account: String,
}

/// Its uid is field two, unlike every other message's.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DelWorkload {
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SnapshotSent {}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct KeepWorkload {
    #[prost(string, tag = "1")]
    pub(crate) uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WorkloadResponse {
    #[prost(oneof = "ResponsePayload", tags = "1")]
    pub(crate) payload: Option<ResponsePayload>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ResponsePayload {
    #[prost(message, tag = "1")]
    Ack(Ack),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Ack {
    #[prost(string, tag = "1")]
    pub(crate) error: String,
}
