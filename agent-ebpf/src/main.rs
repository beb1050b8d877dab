//! The kernel programs: what a covered process connects to an endpoint is led into the agent's listener in its own
//! network namespace, and the agent is told who it was and where it was going. What does not go by way of `connect` to an
//! address that is known is met where it leaves: by the guard on the sockets, and by the perimeter on the devices.
//!
//! They are pinned and so outlive the agent. With the agent gone or stuck, connections to endpoints are refused;
//! everything else goes on untouched.
#![no_std]
#![no_main]

mod address;
mod connect;
mod datagram;
mod dns;
mod egress;
mod established;
mod hello;
mod maps;
mod namespaces;
mod own;
mod packet;
mod peer;
mod perimeter;
mod report;
mod scope;
mod sockets;

/// Verdicts of the cgroup hooks.
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: nothing here panics, and the verifier refuses programs that do not end.
    loop {}
}

// The kernel lends most of its helpers to programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
