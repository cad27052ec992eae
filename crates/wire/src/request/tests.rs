use proptest::prelude::*;

use super::*;

#[test]
fn mask_is_base64_of_raw_bytes_as_in_go() {
    let v4 = IpNet::new("10.0.0.5".parse().unwrap(), 24);
    assert_eq!(v4.mask.as_deref(), Some("////AA=="));
    let v4 = IpNet::new("10.0.0.5".parse().unwrap(), 20);
    assert_eq!(v4.mask.as_deref(), Some("///wAA=="));
    let v6 = IpNet::new("fd00::5".parse().unwrap(), 64);
    assert_eq!(v6.mask.as_deref(), Some("//////////8AAAAAAAAAAA=="));
    assert_eq!(
        IpNet::new("::".parse().unwrap(), 0).mask.as_deref(),
        Some("AAAAAAAAAAAAAAAAAAAAAA==")
    );
    assert_eq!(IpNet::new("10.0.0.5".parse().unwrap(), 32).mask.as_deref(), Some("/////w=="));
}

#[test]
fn a_request_of_istios_plugin_is_read() {
    let body = r#"{"Netns":"/var/run/netns/x","PodName":"p","PodNamespace":"ns",
        "IPs":[{"Interface":null,"Address":{"IP":"::ffff:10.0.0.5","Mask":null},"Gateway":""}]}"#;
    let request: PodRequest = serde_json::from_str(body).unwrap();
    assert_eq!(request.sluice, None);
    let ips = request.ips.unwrap();
    assert_eq!(ips[0].address.addr(), Some("10.0.0.5".parse().unwrap()));
    let request: PodRequest =
        serde_json::from_str(r#"{"Netns":"n","PodName":"p","PodNamespace":"ns","IPs":null}"#)
            .unwrap();
    assert_eq!(request.ips, None);
}

#[test]
fn a_request_of_ours_is_a_superset_of_istios() {
    let request = PodRequest {
        netns: "/n".into(),
        pod_name: "p".into(),
        pod_namespace: "ns".into(),
        ips: Some(vec![IpConfig {
            interface: Some(0),
            address: IpNet::new("10.0.0.5".parse().unwrap(), 24),
            gateway: String::new(),
        }]),
        sluice: Some(Extension {
            version: PROTOCOL_VERSION,
            container_id: "c".into(),
            if_name: "eth0".into(),
            pod_uid: String::new(),
            deadline_ms: 4500,
            pod_annotations: Some([("sidecar.istio.io/status".to_owned(), "{}".to_owned())].into()),
            cgroup_path: "/kubepods/pod1".into(),
            host_netns: Some(NetnsFile { dev: 4, ino: 4026531840 }),
        }),
    };
    assert_eq!(
        serde_json::to_string(&request).unwrap(),
        concat!(
            r#"{"Netns":"/n","PodName":"p","PodNamespace":"ns","#,
            r#""IPs":[{"Interface":0,"Address":{"IP":"10.0.0.5","Mask":"////AA=="},"Gateway":""}],"#,
            r#""Sluice":{"Version":1,"ContainerID":"c","IfName":"eth0","PodUID":"","DeadlineMs":4500,"#,
            r#""PodAnnotations":{"sidecar.istio.io/status":"{}"},"CgroupPath":"/kubepods/pod1","#,
            r#""HostNetns":{"Dev":4,"Ino":4026531840}}}"#
        )
    );
}

#[test]
fn unknown_fields_are_for_newer_versions() {
    let request: PodRequest =
        serde_json::from_str(r#"{"Netns":"n","New":1,"Sluice":{"Version":2,"Newer":{}}}"#).unwrap();
    assert_eq!(request.sluice.unwrap().version, 2);
    let answer: Answer = serde_json::from_str(r#"{"decision":"skip","more":[]}"#).unwrap();
    assert_eq!(answer, Answer { decision: Decision::Skip, reason: String::new() });
    assert!(serde_json::from_str::<Answer>(r#"{"decision":"whatever"}"#).is_err());
}

#[test]
fn attachments_are_read_with_cnis_names_and_written_with_ours() {
    let attachment: Attachment =
        serde_json::from_str(r#"{"containerID":"c","ifname":"eth0"}"#).unwrap();
    let gc = GcRequest {
        sluice: Extension { version: 1, ..Extension::default() },
        attachments: Some(vec![attachment]),
    };
    let text = serde_json::to_string(&gc).unwrap();
    assert!(text.ends_with(r#""Attachments":[{"ContainerID":"c","IfName":"eth0"}]}"#), "{text}");
    assert_eq!(serde_json::from_str::<GcRequest>(&text).unwrap(), gc);
    assert_eq!(
        serde_json::from_str::<GcRequest>(r#"{"Sluice":{"Version":1},"Attachments":null}"#)
            .unwrap()
            .attachments,
        None
    );
}

#[test]
fn paths_are_one_to_one() {
    for endpoint in Endpoint::ALL {
        assert_eq!(Endpoint::of_path(endpoint.path()), Some(endpoint));
    }
    assert_eq!(Endpoint::of_path("/cmdadd/"), None);
}

proptest! {
    #[test]
    fn masks_have_as_many_ones_as_the_prefix(prefix in 0_u8..=128) {
        let net = IpNet::new("fd00::1".parse().unwrap(), prefix);
        let mask = net.mask.unwrap();
        prop_assert_eq!(mask.len(), 24);
        prop_assert_eq!(ones(&mask), u32::from(prefix));
    }

    #[test]
    fn no_body_panics(body in ".{0,200}") {
        let _ = serde_json::from_str::<PodRequest>(&body);
        let _ = serde_json::from_str::<GcRequest>(&body);
        let _ = serde_json::from_str::<Answer>(&body);
    }
}

fn ones(base64: &str) -> u32 {
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    base64
        .trim_end_matches('=')
        .chars()
        .map(|c| (alphabet.find(c).unwrap() as u32).count_ones())
        .sum()
}
