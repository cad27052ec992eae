use proptest::prelude::*;

use super::*;

fn done(bytes: &[u8], eof: bool) -> (u16, Vec<u8>) {
    let answer = response(bytes, eof).unwrap().unwrap();
    (answer.status, answer.body.to_vec())
}

#[test]
fn the_body_ends_at_its_length_or_at_the_end_of_the_stream() {
    assert_eq!(
        done(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", false),
        (200, b"{}".to_vec())
    );
    assert_eq!(
        done(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}extra", false),
        (200, b"{}".to_vec())
    );
    assert_eq!(done(b"HTTP/1.0 500 Oops\r\n\r\nbad", true), (500, b"bad".to_vec()));
    assert_eq!(response(b"HTTP/1.0 500 Oops\r\n\r\nbad", false), Ok(None));
    assert_eq!(response(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", false), Ok(None));
}

#[test]
fn lies_are_named() {
    use ResponseError as E;
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n{{}}").into_bytes();
    assert!(matches!(response(b"SSH-2.0-OpenSSH_9.2\r\n", false), Err(E::NotHttp(_))));
    assert_eq!(response(b"", true), Err(E::Truncated));
    assert_eq!(response(b"HTTP/1.1 200 OK\r\n", true), Err(E::Truncated));
    assert_eq!(response(&head("Content-Length: 3\r\n"), true), Err(E::Truncated));
    assert_eq!(response(&head("Content-Length: +2\r\n"), true), Err(E::ContentLength));
    assert_eq!(
        response(&head("Content-Length: 99999999999999999999999\r\n"), true),
        Err(E::ContentLength)
    );
    assert_eq!(
        response(&head("Content-Length: 2\r\nContent-Length: 1\r\n"), true),
        Err(E::ContentLength)
    );
    assert_eq!(response(&head("Content-Length: 2000000\r\n"), false), Err(E::BodyTooLong));
    assert_eq!(response(&head("Transfer-Encoding: chunked\r\n"), false), Err(E::TransferEncoding));
    let long = head(&format!("A: {}\r\n", "a".repeat(MAX_HEAD)));
    assert_eq!(response(&long, false), Err(E::HeadTooLong));
    let mut long = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
    long.resize(MAX_BODY + 100, b' ');
    assert_eq!(response(&long, false), Err(E::BodyTooLong));
}

#[test]
fn the_request_is_one_that_http_servers_know() {
    let bytes = request(Endpoint::Add, b"{}");
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut head = httparse::Request::new(&mut headers);
    let length = head.parse(&bytes).unwrap().unwrap();
    assert_eq!((head.method, head.path, head.version), (Some("POST"), Some("/cmdadd"), Some(1)));
    assert_eq!(&bytes[length..], b"{}");
}

proptest! {
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), eof: bool) {
        let _ = response(&bytes, eof);
    }

    #[test]
    fn nothing_like_http_panics(tail in "[ -~\r\n]{0,300}", eof: bool) {
        let _ = response(format!("HTTP/1.1 200 OK\r\n{tail}").as_bytes(), eof);
    }

    #[test]
    fn a_prefix_never_says_anything_else_than_the_whole(cut in 0_usize..60) {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"code\":100}";
        let cut = cut.min(whole.len());
        match response(&whole[..cut], false).unwrap() {
            None => prop_assert!(cut < whole.len()),
            Some(answer) => prop_assert_eq!(answer.body, &b"{\"code\":100}"[..]),
        }
    }
}
