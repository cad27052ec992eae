//! Bytes as ztunnel and istio-cni write them, and the traps of the protocol.

use super::*;
use proptest::prelude::*;
use std::error::Error;

fn info(name: &str, namespace: &str, service_account: &str) -> WorkloadInfo {
    WorkloadInfo {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
    }
}

fn add(uid: &str, name: &str) -> Request {
    Request::Add { uid: uid.to_owned(), info: info(name, "shop", "web") }
}

/// (message, bytes): reference/zds.md section 2.
fn golden() -> Vec<(Request, Vec<u8>)> {
    let uid = "u1".to_owned();
    vec![
        (Request::SnapshotSent, b"\x1a\x00".to_vec()),
        // Field 2 of the request, and in it field 2 again.
        (Request::Del { uid: uid.clone() }, b"\x12\x04\x12\x02u1".to_vec()),
        (Request::Keep { uid }, b"\x2a\x04\x0a\x02u1".to_vec()),
        (add("u1", "a"), b"\x0a\x14\x0a\x02u1\x12\x0e\x0a\x01a\x12\x04shop\x1a\x03web".to_vec()),
        // Nobody's names, but the submessage is there.
        (
            Request::Add { uid: "u".to_owned(), info: info("", "", "") },
            b"\x0a\x05\x0a\x01u\x12\x00".to_vec(),
        ),
    ]
}

#[test]
fn requests_have_their_bytes() {
    for (request, bytes) in golden() {
        assert_eq!(request.encode().unwrap(), bytes, "{request}");
        assert_eq!(Request::decode(&bytes).unwrap(), request);
    }
}

#[test]
fn hello_and_answers_have_their_bytes() {
    assert_eq!(Hello::V1.encode().unwrap(), b"\x08\x01");
    assert_eq!(Hello::decode(b"\x08\x01").unwrap(), Hello::V1);
    assert_eq!(Hello::decode(b"\x08\x02").unwrap(), Hello { version: 2 });

    assert_eq!(Response::Ack.encode(), b"\x0a\x00");
    assert_eq!(Response::decode(b"\x0a\x00").unwrap(), Response::Ack);
    let nack = Response::Nack("no".to_owned());
    assert_eq!(nack.encode(), b"\x0a\x04\x0a\x02no");
    assert_eq!(Response::decode(b"\x0a\x04\x0a\x02no").unwrap(), nack);
    // An error with no text is no error: what other encoders may write.
    assert_eq!(Response::decode(b"\x0a\x02\x0a\x00").unwrap(), Response::Ack);
}

#[test]
fn no_packet_is_empty() {
    assert_eq!(
        Hello { version: 0 }.encode().unwrap_err().to_string(),
        "hello of version 0 would be an empty packet, which means the end of the connection"
    );
    assert!(matches!(Hello::decode(b""), Err(DecodeError::NoPayload { .. })));
    assert!(matches!(Request::decode(b""), Err(DecodeError::NoPayload { .. })));
    assert!(matches!(Response::decode(b""), Err(DecodeError::NoPayload { .. })));
}

#[test]
fn what_a_newer_agent_would_ask_is_no_payload() {
    // Field 6 of the request; ztunnel closes the connection over it.
    let err = Request::decode(b"\x32\x04\x0a\x02u1").unwrap_err();
    assert_eq!(err.to_string(), "request of 6 bytes has no payload that is known here");
    // Field 4 was never used.
    assert!(matches!(Request::decode(b"\x22\x00"), Err(DecodeError::NoPayload { .. })));
    assert!(matches!(Response::decode(b"\x12\x00"), Err(DecodeError::NoPayload { .. })));
}

#[test]
fn unknown_fields_beside_known_ones_are_let_be() {
    // `trust_domain`, field 4 of the workload, of older agents.
    let bytes = b"\x0a\x0b\x0a\x02u1\x12\x05\x22\x03c.l";
    let want = Request::Add { uid: "u1".to_owned(), info: info("", "", "") };
    assert_eq!(Request::decode(bytes).unwrap(), want);
    assert_eq!(Response::decode(b"\x0a\x00\x10\x07").unwrap(), Response::Ack);
    assert_eq!(Response::decode(b"\x0a\x02\x10\x07").unwrap(), Response::Ack);
    assert_eq!(Hello::decode(b"\x08\x01\x12\x01x").unwrap(), Hello::V1);
}

#[test]
fn the_uid_of_a_del_in_field_one_is_not_seen() {
    let got = Request::decode(b"\x12\x04\x0a\x02u1").unwrap();
    assert_eq!(got, Request::Del { uid: String::new() });
}

#[test]
fn an_add_without_info_is_told_from_other_errors() {
    let err = Request::decode(b"\x0a\x04\x0a\x02u1").unwrap_err();
    assert_eq!(err, DecodeError::NoWorkloadInfo { uid: "u1".to_owned() });
    assert_eq!(err.to_string(), "add of pod u1 has no workload_info");
}

#[test]
fn what_is_not_protobuf_is_malformed() {
    for bytes in [
        &b"\x0a"[..],
        b"\x0a\x05\x0a\x02u1",
        b"\x08\x01",
        b"\xff\xff\xff",
        b"\x0a\x04\x0a\x02\xff\xfe",
        b"GET / HTTP/1.1",
    ] {
        let err = Request::decode(bytes).unwrap_err();
        assert!(matches!(err, DecodeError::Malformed { .. }), "{bytes:?}: {err}");
        assert!(err.source().is_some(), "what prost said is kept");
        assert!(Response::decode(bytes).is_err(), "{bytes:?}");
    }
    // An answer where the hello belongs: this is not ztunnel's first packet.
    assert!(matches!(Hello::decode(b"\x0a\x00"), Err(DecodeError::Malformed { .. })));
}

#[test]
fn a_request_without_a_uid_is_not_sent() {
    let err = add("", "web-0").encode().unwrap_err();
    assert_eq!(
        err.to_string(),
        "add of pod shop/web-0 (uid ) has no uid: a pod is known by the uid that Kubernetes gave it"
    );
    for request in [Request::Del { uid: String::new() }, Request::Keep { uid: String::new() }] {
        assert!(matches!(request.encode(), Err(EncodeError::NoUid { .. })), "{request}");
    }
}

#[test]
fn the_longest_names_of_kubernetes_fit_and_longer_ones_are_refused() {
    let uid = "d2719f4c-0d6e-4a5e-8f1a-3a0b5d6c7e8f";
    let longest = Request::Add {
        uid: uid.to_owned(),
        info: info(&"p".repeat(253), &"n".repeat(63), &"s".repeat(253)),
    };
    assert_eq!(longest.encode().unwrap().len(), 621);

    // As long as may be, and one more.
    let of = |length| Request::Add {
        uid: uid.to_owned(),
        info: info("web-0", "shop", &"s".repeat(length)),
    };
    let rest = of(0).encode().unwrap().len();
    // Two bytes for the key and length of the account; one more each for the lengths
    // of the two messages around it.
    let most = MAX_REQUEST - rest - 5;
    assert_eq!(of(most).encode().unwrap().len(), MAX_REQUEST);
    let err = of(most + 1).encode().unwrap_err();
    assert_eq!(
        err.to_string(),
        format!(
            "add of pod shop/web-0 (uid {uid}) has 1025 bytes, ztunnel takes 1024: its names are \
             longer than Kubernetes allows"
        )
    );
}

#[test]
fn a_message_about_a_hostile_name_is_one_short_line() {
    let request =
        Request::Add { uid: "u\n1".to_owned(), info: info(&"é".repeat(5000), "shop", "web") };
    let text = request.encode().unwrap_err().to_string();
    assert!(text.len() < 800 && !text.contains('\n'), "{text}");
}

#[test]
fn an_error_that_was_cut_off_is_an_answer() {
    let whole = Response::Nack("x".repeat(12_307));
    let packet = whole.encode();
    assert_eq!(Response::decode(&packet).unwrap(), whole);
    let part = packet.get(..1024).unwrap();
    assert!(Response::decode(part).is_err(), "as it is, it is none");
    let Response::Nack(text) = Response::decode_cut_off(part).unwrap() else {
        panic!("an ack");
    };
    assert_eq!(text, "x".repeat(1024 - 6));
    // In the middle of a character.
    let packet = Response::Nack("é".repeat(1000)).encode();
    let Response::Nack(text) = Response::decode_cut_off(packet.get(..101).unwrap()).unwrap() else {
        panic!("an ack");
    };
    assert!(text.ends_with("é\u{fffd}"), "{text}");
}

#[test]
fn what_was_cut_off_and_no_error_is_no_answer() {
    for packet in
        [&b""[..], b"\x0a", b"\x12\xff\x01abc", b"\x0a\x02\x0a\x00", b"\x0a\xff\x01\x12\x03a"]
    {
        let err = Response::decode_cut_off(packet).unwrap_err();
        assert_eq!(err, DecodeError::CutOff { message: "response", bytes: packet.len() });
    }
}

fn requests() -> impl Strategy<Value = Request> {
    let name = || ".{1,100}";
    prop_oneof![
        (name(), ".{0,60}", ".{0,60}", ".{0,60}")
            .prop_map(|(uid, a, b, c)| Request::Add { uid, info: info(&a, &b, &c) }),
        name().prop_map(|uid| Request::Keep { uid }),
        name().prop_map(|uid| Request::Del { uid }),
        Just(Request::SnapshotSent),
    ]
}

proptest! {
    #[test]
    fn requests_survive(request in requests()) {
        match request.encode() {
            Ok(packet) => {
                prop_assert!(!packet.is_empty() && packet.len() <= MAX_REQUEST);
                prop_assert_eq!(Request::decode(&packet).unwrap(), request);
            }
            Err(err) => prop_assert!(matches!(err, EncodeError::TooLong { .. }), "{err}"),
        }
    }

    #[test]
    fn answers_survive(error in ".{1,2000}") {
        let response = Response::Nack(error);
        prop_assert_eq!(Response::decode(&response.encode()).unwrap(), response);
    }

    #[test]
    fn nothing_that_arrives_panics(packet in prop::collection::vec(any::<u8>(), 0..300)) {
        for decoded in [Hello::decode(&packet).is_ok(), Request::decode(&packet).is_ok()] {
            prop_assert!(!(decoded && packet.is_empty()));
        }
        let _ = Response::decode(&packet).and_then(|_| Response::decode_cut_off(&packet));
    }

    #[test]
    fn what_is_read_is_what_was_written(packet in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(request) = Request::decode(&packet)
            && let Ok(again) = request.encode()
        {
            prop_assert_eq!(Request::decode(&again).unwrap(), request);
        }
    }
}
