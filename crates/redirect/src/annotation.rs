//! Keys of annotations and labels (reference 2.6, 4.2).

/// Written by the injector; its presence makes a pod a sidecar pod.
pub const STATUS: &str = "sidecar.istio.io/status";
/// Label or annotation that switches injection.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// `REDIRECT`, `TPROXY` or `NONE`.
pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
/// Prefixes that are captured.
pub const INCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
/// Prefixes that are not.
pub const EXCLUDE_OUTBOUND_IP_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// Inbound ports that are not captured.
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// Inbound ports that are captured.
pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
/// Outbound ports that are not captured.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Outbound ports that are captured to any address.
pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
/// Interfaces that are left alone.
pub const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
/// Interfaces of guests.
pub const REROUTE_VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// The same, an older name.
pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
/// Inbound connections of an ambient pod are left to the pod itself: an ingress
/// gateway's (reference 4.2).
pub const BYPASS_INBOUND_CAPTURE: &str = "ambient.istio.io/bypass-inbound-capture";
/// Whether an ambient pod's DNS queries are captured, whatever the agent's default
/// is (reference 4.2).
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
