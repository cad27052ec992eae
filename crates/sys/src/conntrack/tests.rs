//! Against the real kernel: rules change while sockets go on sending.

use super::*;
use crate::backend::Backend;
use crate::lab::{ambient_plan as plan, ip, nft};
use crate::netns::{Netns, within};
use crate::nftables::Nftables;
use redirect::compile::ambient;
use redirect::desired::Form;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A pod with a neighbour that has 192.0.2.1 and 2001:db8::1, both known to this
/// thread only.
fn pair() -> (Netns, Netns) {
    let (pod, world) = (Netns::create().unwrap(), Netns::create().unwrap());
    within(&pod, || {
        let peer = format!("/proc/{}/fd/{}", std::process::id(), world.as_fd().as_raw_fd());
        ip("link set lo up");
        ip(&format!("link add eth0 type veth peer name w0 netns {peer}"));
        ip("link set eth0 up
             addr add 192.0.2.2/24 dev eth0
             addr add 2001:db8::2/64 dev eth0 nodad");
    })
    .unwrap();
    within(&world, || {
        ip("link set lo up
             link set w0 up
             addr add 192.0.2.1/24 dev w0
             addr add 2001:db8::1/64 dev w0 nodad");
    })
    .unwrap();
    (pod, world)
}

/// Who answers the query of a socket: its first byte.
fn ask(socket: &UdpSocket) -> Option<u8> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut answer = [0; 16];
    for _ in 0..20 {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
        socket.send(&number).ok()?;
        // On a busy machine the answer to an earlier query may come late.
        while let Ok(len) = socket.recv(&mut answer) {
            if len == 5 && answer[1..5] == number {
                return Some(answer[0]);
            }
        }
    }
    None
}

/// Answers every datagram with its name and the datagram until it hears `.`.
fn serve(at: SocketAddr, name: u8) -> std::thread::JoinHandle<()> {
    let socket = UdpSocket::bind(at).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok((len, from)) = socket.recv_from(&mut bytes) {
            if bytes[..len] == *b"." {
                break;
            }
            let _ = socket.send_to(&[&[name], &bytes[..len]].concat(), from);
        }
    })
}

fn stop(at: SocketAddr) {
    let any: SocketAddr = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    UdpSocket::bind(any).unwrap().send_to(b".", at).unwrap();
}

#[test]
fn a_socket_that_goes_on_asking_meets_the_rules_that_hold_now() {
    for (server, resolver) in
        [("192.0.2.1:53", "127.0.0.1:15053"), ("[2001:db8::1]:53", "[::1]:15053")]
    {
        let (server, resolver): (SocketAddr, SocketAddr) =
            (server.parse().unwrap(), resolver.parse().unwrap());
        let (pod, world) = pair();
        let thread = within(&world, || serve(server, b'w')).unwrap();
        within(&pod, || {
            // Somebody tracks connections before we come, as a CNI's own rules do.
            nft("add table inet other\nadd chain inet other c { type filter hook output \
                 priority 0 ; }\nadd rule inet other c ct state new counter");
            let local = serve(resolver, b'z');
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let app = UdpSocket::bind(any).unwrap();
            app.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            app.connect(server).unwrap();
            assert_eq!(ask(&app), Some(b'w'));
            assert!(entries().unwrap().iter().any(|e| e.destination == server));

            Nftables::new().apply(&ambient(&plan(), Form::Sluice), None).unwrap();
            assert_eq!(ask(&app), Some(b'w'), "by its entry of before: this test can fail");
            assert_eq!(flush_dns(Queries::Captured).unwrap(), 0);
            assert_eq!(flush_dns(Queries::Direct).unwrap(), 1);
            assert_eq!(ask(&app), Some(b'z'));
            assert_eq!(flush_dns(Queries::Direct).unwrap(), 0, "goes the right way already");

            Nftables::new().remove().unwrap();
            assert_eq!(flush_dns(Queries::Captured).unwrap(), 1);
            assert_eq!(ask(&app), Some(b'w'));
            stop(resolver);
            local.join().unwrap();
        })
        .unwrap();
        within(&world, || stop(server)).unwrap();
        thread.join().unwrap();
    }
}

#[test]
fn nothing_tracked_is_nothing_asked() {
    within(&Netns::create().unwrap(), || {
        assert_eq!(flush_dns(Queries::Direct).unwrap(), 0);
        assert_eq!(entries().unwrap(), []);
    })
    .unwrap();
}

/// Prints what a flush costs; the bound is only to notice a walk per entry.
#[test]
fn a_flush_is_cheap() {
    let (pod, _world) = pair();
    within(&pod, || {
        let bare = Instant::now();
        assert_eq!(flush_dns(Queries::Direct).unwrap(), 0);
        let bare = bare.elapsed();
        nft("add table inet other\nadd chain inet other c { type filter hook output \
             priority 0 ; }\nadd rule inet other c ct state new counter");
        for n in 0..2000u32 {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let port = if n % 2 == 0 { 53 } else { 5353 };
            let _ = socket
                .send_to(b"?", (std::net::Ipv4Addr::from_bits(0xc000_0200 + n % 200 + 3), port));
        }
        let start = Instant::now();
        let all = entries().unwrap().len();
        let listed = start.elapsed();
        let start = Instant::now();
        let removed = flush_dns(Queries::Direct).unwrap();
        let took = start.elapsed();
        println!("flush: {bare:?} with none, {listed:?} to list {all} entries, {took:?} to forget {removed}");
        assert!(removed > 100 && removed < all, "{removed} of {all}");
        assert!(took < Duration::from_secs(60), "{took:?}");
        assert_eq!(flush_dns(Queries::Direct).unwrap(), 0);
    })
    .unwrap();
}
