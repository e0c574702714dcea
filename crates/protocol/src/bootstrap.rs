//! The line that brings the agent into an image of which nothing is known but that it has `/bin/sh`.
//!
//! It tries curl, wget, python3, perl and, for plain HTTP, bash; and it runs nothing whose SHA-256 is not the one that was asked for. A
//! file that is there already, from an image or an earlier boot, is used if its hash is right. It gives up after some minutes; what
//! it printed until then is in the provider's log.

/// Longest line that providers take along with everything else (Vast.ai: `args` and `onstart` together 4,096 characters, seen 2026-08).
pub const MAX_CHARS: usize = 3_500;

/// Names of the variables that the line, and the agent after it, read.
pub mod variables {
    /// Signed URL of the agent's binary.
    pub const AGENT_URL: &str = "TRADEWIND_AGENT_URL";
    /// SHA-256 of the agent's binary, lower-case hex.
    pub const AGENT_SHA256: &str = "TRADEWIND_AGENT_SHA256";
    /// Signed URL of the machine's control document.
    pub const CONTROL_URL: &str = "TRADEWIND_CONTROL_URL";
}

/// The line, for `/bin/sh -c`. It has no parts to fill in: everything comes from the environment ([`variables`]).
///
/// Certificates are checked at first and not at every second try, because many images have no CA roots: the hash decides in any case,
/// and the URL leads to nothing but the agent, which is no secret. No tool is let print the URL.
pub const LINE: &str = concat!(
    r#"u=${TRADEWIND_AGENT_URL:?} w=${TRADEWIND_AGENT_SHA256:?} n=0 k=; "#,
    r#"say() { echo "tradewind: $*"; }; "#,
    r#"has() { command -v "$1" >/dev/null 2>&1; }; "#,
    // sum FILE: true if some tool says that it has the hash that was asked for.
    r#"sum() { for h in sha256sum shasum openssl python3 perl; do has $h || continue; case $h in "#,
    r#"sha256sum) s=$(sha256sum <"$1");; "#,
    r#"shasum) s=$(shasum -a 256 <"$1");; "#,
    r#"openssl) s=$(openssl dgst -sha256 -r <"$1");; "#,
    r#"python3) s=$(python3 -c 'import hashlib,sys;print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())' <"$1");; "#,
    r#"perl) s=$(perl -MDigest::SHA -e 'print Digest::SHA->new(256)->addfile(*STDIN)->hexdigest' <"$1");; "#,
    r#"esac 2>/dev/null; [ "${s%% *}" = "$w" ] && return 0; done; return 1; }; "#,
    // get TOOL FILE
    r#"get() { case $1 in "#,
    r#"curl) curl -fsS ${k:+-k} --connect-timeout 10 --speed-limit 1 --speed-time 60 -o "$2" "$u";; "#,
    r#"wget) wget -q ${k:+--no-check-certificate} -T 60 -O "$2" "$u";; "#,
    r#"python3) python3 -c 'import os,shutil,ssl,sys,urllib.request as r; "#,
    r#"c=ssl._create_unverified_context() if sys.argv[2:] else None; "#,
    r#"shutil.copyfileobj(r.urlopen(os.environ["TRADEWIND_AGENT_URL"],timeout=60,context=c),open(sys.argv[1],"wb"))' "#,
    r#""$2" $k 2>/dev/null;; "#,
    r#"perl) perl -MHTTP::Tiny -e '$r=HTTP::Tiny->new(timeout=>60)->mirror($ENV{TRADEWIND_AGENT_URL},$ARGV[0]); "#,
    r#"$r->{success} or die "$r->{status}\n"' "$2";; "#,
    r#"bash) case $u in http://*) ;; *) return 1;; esac; "#,
    r#"bash -c 'u=${TRADEWIND_AGENT_URL#http://}; a=${u%%/*} c=$(printf "\r") p=80; case $a in *:*) p=${a##*:};; esac; "#,
    r#"exec 3<>"/dev/tcp/${a%:*}/$p" || exit 1; printf "GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n" "${u#*/}" "$a" >&3; "#,
    r#"read -r _ s _ <&3; [ "$s" = 200 ] || { echo "status $s" >&2; exit 1; }; "#,
    r#"while read -r l <&3 && [ "$l" != "$c" ]; do :; done; cat <&3 >"$1"' bash "$2";; "#,
    r#"esac; }; "#,
    // fetch FILE: with whatever tool is there.
    r#"fetch() { for t in curl wget python3 perl bash; do has $t || continue; rm -f "$1.part"; "#,
    r#"if get $t "$1.part"; then sum "$1.part" && chmod 755 "$1.part" && mv -f "$1.part" "$1" && return 0; "#,
    r#"say "What $t fetched does not have the SHA-256 that was asked for, or nothing can check it"; rm -f "$1.part"; "#,
    r#"else say "$t could not fetch the agent"; fi; done; return 1; }; "#,
    // Some images have no writable working directory, or one that nothing can be run from.
    r#"while [ $n -lt 60 ]; do for d in . "${TMPDIR:-/tmp}" /dev/shm; do f=$d/tradewind-agent; "#,
    r#"{ [ -f "$f" ] && sum "$f"; } || { [ -w "$d" ] && fetch "$f"; } || continue; "#,
    r#"[ -x "$f" ] || chmod 755 "$f"; "$f" --version >/dev/null 2>&1 && exec "$f" run; "#,
    r#"say "The agent cannot be run in $d"; done; "#,
    r#"n=$((n+1)); if [ $k ]; then k=; else k=k; fi; sleep ${TRADEWIND_RETRY_S:-5}; done; "#,
    r#"say "No agent: no curl, wget, python3, perl or bash could fetch it"; exit 1"#,
);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use sha2::{Digest, Sha256};

    use super::*;

    /// Passes for the agent.
    const AGENT: &[u8] = b"#!/bin/sh\n[ \"$1\" = run ] && echo \"agent runs in $PWD\"\nexit 0\n\x00\xff\n";

    /// Serves one body for every GET of `/agent?signature=hidden`, 404 for anything else. Counts what it served.
    fn serve(body: &'static [u8]) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, served) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&served);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    request.push(byte[0]);
                }
                let right = request.starts_with(b"GET /agent?signature=hidden HTTP/1.");
                let (status, body) = if right { ("200 OK", body) } else { ("404 Not Found", &b"no"[..]) };
                count.fetch_add(usize::from(right), Ordering::SeqCst);
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
            }
        });
        (port, served)
    }

    /// Where a tool really is; `None`, with a word about it, if it is missing.
    fn find(tool: &str) -> Option<PathBuf> {
        // A shim of a version chooser would need its own tools: ask the interpreter itself.
        let ask = if tool == "python3" { "python3 -c 'import sys; print(sys.executable)'" } else { "" };
        let shell = if ask.is_empty() { format!("command -v {tool}") } else { ask.to_owned() };
        let output = Command::new("/bin/sh").args(["-c", &shell]).output().unwrap();
        let path = String::from_utf8(output.stdout).unwrap();
        let path = Path::new(path.trim());
        if output.status.success() && path.is_absolute() {
            return Some(path.to_owned());
        }
        #[expect(clippy::disallowed_methods, reason = "tests decide by it whether a skip is a failure")]
        let strict = std::env::var("CI").is_ok_and(|ci| ci == "true") && ["curl", "python3"].contains(&tool);
        assert!(!strict, "{tool} must be there");
        eprintln!("skipped: {tool} is not installed");
        None
    }

    struct Machine {
        directory: PathBuf,
        tools: PathBuf,
    }

    impl Machine {
        /// A machine that has these tools and what every image has.
        fn with(name: &str, tools: &[&str]) -> Option<Self> {
            let root = std::env::temp_dir().join(format!("tradewind-bootstrap-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&root);
            let machine = Self { directory: root.join("work"), tools: root.join("tools") };
            std::fs::create_dir_all(&machine.directory).unwrap();
            std::fs::create_dir_all(&machine.tools).unwrap();
            for tool in ["rm", "mv", "chmod", "sleep", "cat"].iter().chain(tools) {
                symlink(find(tool)?, machine.tools.join(tool)).unwrap();
            }
            Some(machine)
        }

        fn boot(&self, port: u16, sha256: &str) -> Output {
            let path = self.tools.to_str().unwrap();
            Command::new("/bin/sh")
                .args(["-c", &LINE.replace("$n -lt 60", "$n -lt 2")])
                .env_clear()
                .env("PATH", path)
                .env("TMPDIR", &self.directory)
                .env("TRADEWIND_RETRY_S", "0")
                .env(variables::AGENT_URL, format!("http://127.0.0.1:{port}/agent?signature=hidden"))
                .env(variables::AGENT_SHA256, sha256)
                .current_dir(&self.directory)
                .output()
                .unwrap()
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(self.directory.parent().unwrap());
        }
    }

    fn sha256(bytes: &[u8]) -> String {
        use std::fmt::Write;
        Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a text takes everything");
            hex
        })
    }

    fn printed(output: &Output) -> String {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    #[test]
    fn the_line_is_short_and_plain() {
        assert!(LINE.chars().count() < MAX_CHARS, "{}", LINE.chars().count());
        assert!(LINE.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "one line");
    }

    #[test]
    fn each_tool_alone_fetches_and_each_tool_alone_checks() {
        let (port, served) = serve(AGENT);
        let fetching = ["curl", "wget", "python3", "perl", "bash"].map(|tool| [tool, "sha256sum"]);
        let checking = ["shasum", "openssl", "python3", "perl"].map(|tool| ["curl", tool]);
        for tools in fetching.iter().chain(&checking) {
            // Where shasum is a Perl script it brings its interpreter.
            let with_interpreter = [tools[0], tools[1], "perl"];
            let tools = if tools[1] == "shasum" { &with_interpreter[..] } else { &tools[..] };
            let Some(machine) = Machine::with(&tools.join("-"), tools) else { continue };
            let before = served.load(Ordering::SeqCst);
            let output = machine.boot(port, &sha256(AGENT));
            let text = printed(&output);
            assert!(text.starts_with("agent runs in "), "{tools:?}: {text}");
            assert_eq!(served.load(Ordering::SeqCst), before + 1, "{tools:?}");
            // Another boot uses what is there.
            assert!(printed(&machine.boot(port, &sha256(AGENT))).starts_with("agent runs in "));
            assert_eq!(served.load(Ordering::SeqCst), before + 1, "{tools:?} fetched again");
        }
    }

    #[test]
    fn nothing_with_another_hash_is_run() {
        let Some(machine) = Machine::with("hash", &["curl", "sha256sum"]) else { return };
        let (port, _) = serve(b"#!/bin/sh\necho intruder\n");
        let planted = machine.directory.join("tradewind-agent");
        std::fs::write(&planted, "#!/bin/sh\necho planted\n").unwrap();
        std::fs::set_permissions(&planted, PermissionsExt::from_mode(0o755)).unwrap();
        let output = machine.boot(port, &sha256(AGENT));
        let text = printed(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(!text.contains("intruder") && !text.contains("planted"), "{text}");
        assert!(text.contains("What curl fetched does not have the SHA-256"), "{text}");
        let (port, _) = serve(AGENT);
        assert!(
            printed(&machine.boot(port, &sha256(AGENT))).starts_with("agent runs in "),
            "replaced by the right one"
        );
    }

    #[test]
    fn without_any_tool_or_answer_it_says_so_and_never_prints_the_url() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for tools in [&["sha256sum"][..], &["curl", "wget", "python3", "perl", "bash", "sha256sum"], &["curl"]] {
            let Some(machine) = Machine::with(&format!("none-{}", tools.len()), tools) else { continue };
            let output = machine.boot(closed, &sha256(AGENT));
            let text = printed(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("tradewind: No agent"), "{text}");
            assert!(!text.contains("signature"), "{text}");
        }
    }
}
