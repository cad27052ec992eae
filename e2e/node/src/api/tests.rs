use super::*;
use serde_json::json;
use std::io::{Read, Write};

/// One request by a client that knows nothing: status and body.
fn ask(server: &Server, method: &str, target: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1;
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn server() -> Server {
    let server = Server::start().unwrap();
    for name in ["a", "b", "c"] {
        let pod = json!({"kind": "Pod", "metadata": {"name": name, "namespace": "n", "labels": {"l": name}}, "spec": {"nodeName": "n1"}});
        server.put(pod).unwrap();
    }
    server
}

const POD: &str = "/api/v1/namespaces/n/pods/a";

#[test]
fn reads_changes_and_removes() {
    let server = server();
    let (status, pod) = ask(&server, "GET", POD, "");
    assert_eq!((status, &pod["metadata"]["uid"]), (200, &json!("uid-of-a")));
    assert_eq!(ask(&server, "GET", "/api/v1/namespaces/n/pods/x", "").0, 404);
    assert_eq!(ask(&server, "GET", "/api/v1/secrets", "").0, 404);

    let patch = r#"{"metadata":{"labels":{"x":"1","l":null}}}"#;
    let (status, patched) = ask(&server, "PATCH", &format!("{POD}/status"), patch);
    assert_eq!((status, &patched["metadata"]["labels"]), (200, &json!({"x": "1"})));
    assert_ne!(patched["metadata"]["resourceVersion"], pod["metadata"]["resourceVersion"]);

    for wrong in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
        let body = json!({"preconditions": wrong}).to_string();
        assert_eq!(ask(&server, "DELETE", POD, &body).0, 409, "{body}");
    }
    let body = json!({"preconditions": {"uid": "uid-of-a", "resourceVersion": patched["metadata"]["resourceVersion"]}});
    assert_eq!(ask(&server, "DELETE", POD, &body.to_string()).0, 200);
    assert_eq!(ask(&server, "DELETE", POD, "").0, 404);

    let event = r#"{"kind":"Event","metadata":{"name":"e"},"reason":"r"}"#;
    assert_eq!(ask(&server, "POST", "/api/v1/namespaces/n/events", event).0, 201);
    assert!(server.object("events", "n", "e").is_some());
    let counts = server.counts();
    assert_eq!((counts["patch pods/status"], counts["delete pods"]), (1, 4));
    assert_eq!(counts["create events"], 1);
}

#[test]
fn lists_in_pages_and_by_selector() {
    let server = server();
    let (_, page) = ask(&server, "GET", "/api/v1/pods?limit=2", "");
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let next = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let (_, rest) = ask(&server, "GET", &format!("/api/v1/pods?limit=2&continue={next}"), "");
    assert_eq!(rest["items"][0]["metadata"]["name"], "c");
    assert_eq!(rest["metadata"]["continue"], "");
    server.expire();
    assert_eq!(ask(&server, "GET", &format!("/api/v1/pods?continue={next}"), "").0, 410);
    let (_, whole) = ask(&server, "GET", "/api/v1/pods?limit=2&resourceVersion=0", "");
    assert_eq!(whole["items"].as_array().unwrap().len(), 3, "the cache takes no pages");
    let (_, one) = ask(&server, "GET", "/api/v1/pods?labelSelector=l%3Db", "");
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
    let (_, none) = ask(&server, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", "");
    assert_eq!(none["items"], json!([]));
}

#[test]
fn watches_as_versions_of_servers_differ() {
    let server = server();
    let end = "timeoutSeconds=0&watch=true";
    let stream = format!(
        "/api/v1/pods?{end}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=0"
    );
    server.set(|options| options.watch_list = WatchList::Refused);
    let (status, refusal) = ask(&server, "GET", &stream, "");
    assert_eq!(status, 422);
    assert!(refusal["message"].as_str().unwrap().contains("sendInitialEvents is forbidden"));
    let matched = format!("/api/v1/pods?{end}&resourceVersionMatch=NotOlderThan");
    assert_eq!(ask(&server, "GET", &matched, "").0, 422);
    for how in [WatchList::Served, WatchList::Ignored] {
        server.set(|options| options.watch_list = how);
        assert_eq!(ask(&server, "GET", &stream, "").0, 200);
    }
}

#[test]
fn faults_befall_whom_they_should() {
    let server = server();
    server.fail(Rule::from(Fault::Status(403)).on("get").of("pods").named("a").times(1));
    assert_eq!(ask(&server, "GET", "/api/v1/namespaces/n/pods/b", "").0, 200);
    assert_eq!(ask(&server, "GET", POD, "").0, 403);
    assert_eq!(ask(&server, "GET", POD, "").0, 200);
    server.fail(Fault::TooMany(7).into());
    assert_eq!(ask(&server, "GET", POD, "").0, 429);
    server.heal();
    server.down().unwrap();
    assert!(TcpStream::connect(server.address).is_err());
    server.up().unwrap();
    assert_eq!(ask(&server, "GET", POD, "").0, 200);
}
