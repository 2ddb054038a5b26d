use super::*;

/// Host certificates as ssh-keygen writes them, and the keys of their authorities: principals host1.example.org and other,
/// serial 7, valid from 2025 to 2035.
const MADE_BY_SSH_KEYGEN: [(&str, &str, &str); 5] = [
    (
        "ssh-rsa",
        "ssh-rsa-cert-v01@openssh.com AAAAHHNzaC1yc2EtY2VydC12MDFAb3BlbnNzaC5jb20AAAAgSBsOOVafn/4c2zXotP1joNwy6cFDSGz7Pkpx3nHoBSQAAAADAQABAAABgQDct0wodP5fFVY1KrQb6vYZnX1AnzT4yL7xhAW/L7KaAgOkT/cWYaeA7+g9062/ToURZuEuev9xWDasGtYWcd0oIsWJ3u8DCw7IviFSfpwhg3TLjafYj71yrFwGA6ndzk86LZc+rBwZAgViVmU1+4uIfs1yORD0foeyNEtbe8WnRdfRJXOrHfw2IEMAgTuvOYvUmh5OKnxXqVb7OUum2+qwyeM0qHoGF9MlplkAuyD5woC0006+XRpFwO8BKnVJ2DEwtn1KQVKGXQcU9pskum47lddL7/VEArHBJp8Xf1Kl61yvSJ+rYQd8fXOy3smgQWQD0y4xOdXpfWZn7UN5dPVo3R4Fq/m8WQDTpyund2mivKIlCPr6KZb5r0QghHAzgqadZwT67MCNB1fK/+5K4dwefbQpEuxD5REFQVRb7gRuYG6BPTpBq61JGyPJUR+7AMqKjsHHYRjruPYgPQ4DfM+Wp4HKKmrlVMDIqHjUV2kQtWAjDDH5PITfyIhQ/00UyCsAAAAAAAAABwAAAAIAAAALaWQgcnNhYjMwNzIAAAAeAAAAEWhvc3QxLmV4YW1wbGUub3JnAAAABW90aGVyAAAAAGd0hYAAAAAAekMrgAAAAAAAAAAAAAAAAAAAAZcAAAAHc3NoLXJzYQAAAAMBAAEAAAGBAK72N04B/4lJqCW7g8w3Bsne7yipbBpCtPFD9aH209rN0OHNL9Hh69afxeFl0/Afqtq4LNEV8TvN4yYE+JWqLzZIBi+ZQrF7DXxWo8JhJV24/6OAJ7oYx+OUFYqHV+ISKkJVOhmKHSkrrYJf0B4LXOtM5Y3jEpOaGePP5djqjYsCtmq52/JNlvo3O4sftIQE+mqRmBW4weIULbnTlTqOX/aj2NStjzIZcIXKHBjkuWca7Pmz4PMr9SD6OQPU7UGN16t1PcHpWjhHBkuMkaMjmmVinp9DeXkUPaOLzbwdXqmWhZJamLwhcgkUyZPNDpk7ebmgejzTsSi5uIs0Pl+5ZNI+wTgm4c697bYkBn8ppoaZ8g4tEcir7WcUNLnk2qct2lQm0e6DeI7105WMUGszJDjmVyVvbwjjrP4SozSHFNu6U1GbQgc/wG3gI7tfdHe1rWiLH+QCQ4SbZis7XCbC4fKjpG6D+wtfBnp+0AfyxRpWOahLTbiPi8Dmv3xg5DRKtwAAAZQAAAAMcnNhLXNoYTItNTEyAAABgFgg4UOZIsk1huHfsMivGH27CMDH8sH2daI4iYXeM7DcC3BCI2TYsPZCtWK7r7Nox7af+w6oJ1tWQY0xtrU/aLOJXidiKkKIrj1ogfs7qjw9LaTrknyTdm7zd3Uw8r0oba25o8B6EGn/LkRyDpjIkUlgdYEwFCUVkA2EA5sFip87ZNBDbAiD70YyHsurITVeXj7U/Ty1bJgobiWnpFzKGSWeB+GlBHO9esb4GnGwsFaz/UEajCB36tG6lDLKJXWbGW/ynWvX6q4i0rY90yyQYN1OB/7PDfcagnrV/D5f2OkrlKl4kDvzo4OtftwNEg/EFm3Et9NfwBVv2ACGE0RhI6yEifZ+qGJdlO4nNzUQPs1BHPmUZf3BMLPgvlkOhlkX+6M/pgFXA/azr4z55zMf2tKQ1opWd0csZfrY8Kq31FdPaA7RxEKTyMiQhfhd4neM32QLVIX8wmuiMv2Pb6eD+qX9yt7X7yHnPC2Ans100XLYzlv1XMlLNMqsFAVDaIfIeA== a comment",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQCu9jdOAf+JSaglu4PMNwbJ3u8oqWwaQrTxQ/Wh9tPazdDhzS/R4evWn8XhZdPwH6rauCzRFfE7zeMmBPiVqi82SAYvmUKxew18VqPCYSVduP+jgCe6GMfjlBWKh1fiEipCVToZih0pK62CX9AeC1zrTOWN4xKTmhnjz+XY6o2LArZqudvyTZb6NzuLH7SEBPpqkZgVuMHiFC2505U6jl/2o9jUrY8yGXCFyhwY5LlnGuz5s+DzK/Ug+jkD1O1BjderdT3B6Vo4RwZLjJGjI5plYp6fQ3l5FD2ji828HV6ploWSWpi8IXIJFMmTzQ6ZO3m5oHo807EoubiLND5fuWTSPsE4JuHOve22JAZ/KaaGmfIOLRHIq+1nFDS55NqnLdpUJtHug3iO9dOVjFBrMyQ45lclb28I46z+EqM0hxTbulNRm0IHP8Bt4CO7X3R3ta1oix/kAkOEm2YrO1wmwuHyo6Rug/sLXwZ6ftAH8sUaVjmoS024j4vA5r98YOQ0Src=",
    ),
    (
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp256-cert-v01@openssh.com AAAAKGVjZHNhLXNoYTItbmlzdHAyNTYtY2VydC12MDFAb3BlbnNzaC5jb20AAAAgpVEe1RhvIRhL1XguKuDxIUXqkzArVCnjrbkkY5gVxB8AAAAIbmlzdHAyNTYAAABBBAoZxIQ6ZyWY6hSAIHKM/PIY/OdAOogYoS/5tGDYHFoLHSjH7z4wtRs+qtoTf1qRxzZc+r8aKF88QWMkplstlpsAAAAAAAAABwAAAAIAAAAMaWQgZWNkc2FiMjU2AAAAHgAAABFob3N0MS5leGFtcGxlLm9yZwAAAAVvdGhlcgAAAABndIWAAAAAAHpDK4AAAAAAAAAAAAAAAAAAAABoAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIBI8Huew/LhZeXiNcXELl2khxLBdh6sN4xNwkkS8O2SHR1g4TB6f9T6yWXujluUvhOuEgvj6jNpiqKb9cNpRhIAAABkAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAABJAAAAIQCq69kAgbmhqxLjKUJ9i58P8dsRRZTiBbpa2eBDctL1jgAAACA4+Ol36eEQwbZJPQ41MiWBZkY7/k7sdDthB1z/Jk5pZA== a comment",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBIBI8Huew/LhZeXiNcXELl2khxLBdh6sN4xNwkkS8O2SHR1g4TB6f9T6yWXujluUvhOuEgvj6jNpiqKb9cNpRhI=",
    ),
    (
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp384-cert-v01@openssh.com AAAAKGVjZHNhLXNoYTItbmlzdHAzODQtY2VydC12MDFAb3BlbnNzaC5jb20AAAAgLQPFr6uOB2iqbKr6rXJSKUQsTDgJRgv57Gs3c7yJ0hMAAAAIbmlzdHAzODQAAABhBIEQC2xHmqcPldaJbG55IEj8gHQ09BKcjgVKOZcm31qM5TpD9Z654wBmtRYUXwHcSaLrrMSNw5fTdJIvlXPsEyUUVvU0tx56UsxX4MXmkSEjT5r2l9lLUqzCZfZwUKjCfQAAAAAAAAAHAAAAAgAAAAxpZCBlY2RzYWIzODQAAAAeAAAAEWhvc3QxLmV4YW1wbGUub3JnAAAABW90aGVyAAAAAGd0hYAAAAAAekMrgAAAAAAAAAAAAAAAAAAAAIgAAAATZWNkc2Etc2hhMi1uaXN0cDM4NAAAAAhuaXN0cDM4NAAAAGEEM1BF4cDacFQI6c1yE2U9BzZdhFWF/2lXJinxHwZc/1vkcYTYh456XyJG4sTCo9+uC6/YzR8mgxcCRh7Zj3EocmTi8ZO00Kyyq/5J+86cZWRMX2xLkf5Z3MKVJFGkLuMlAAAAgwAAABNlY2RzYS1zaGEyLW5pc3RwMzg0AAAAaAAAADA4jF7jVb4sm5ktey8BXEQOeejxVyYezMRFVp6K7Wr4oL5uvgcvUMPfqqlj9QMNm+oAAAAwUwEkTPJ5Z17p900kXWhaMOMuOD4dz51yGvkeEKQgKzNArD3TZHY4yej48pHGnh9r a comment",
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBDNQReHA2nBUCOnNchNlPQc2XYRVhf9pVyYp8R8GXP9b5HGE2IeOel8iRuLEwqPfrguv2M0fJoMXAkYe2Y9xKHJk4vGTtNCssqv+SfvOnGVkTF9sS5H+WdzClSRRpC7jJQ==",
    ),
    (
        "ecdsa-sha2-nistp521",
        "ecdsa-sha2-nistp521-cert-v01@openssh.com AAAAKGVjZHNhLXNoYTItbmlzdHA1MjEtY2VydC12MDFAb3BlbnNzaC5jb20AAAAg44woq8143j8jbb8YmLic0fbsV2WcNbQMHJ0PvNk+gSsAAAAIbmlzdHA1MjEAAACFBAEN99pNof7/S8vld+kYIyNtZ3FcQqCoxUjVASJRKrM8y1Y9JgZh+8Zs0Q+texcXGt9PXxRO0elHCo5WSSpPXO0UFAEtCi35rNBQ1bxu3slk8ixnDr6xYLG9upB+yQZ+SAFC2jK2LEjj2wXnbhxBzh7ThbbILsRkPtKXc01MgTLZAzeFRwAAAAAAAAAHAAAAAgAAAAxpZCBlY2RzYWI1MjEAAAAeAAAAEWhvc3QxLmV4YW1wbGUub3JnAAAABW90aGVyAAAAAGd0hYAAAAAAekMrgAAAAAAAAAAAAAAAAAAAAKwAAAATZWNkc2Etc2hhMi1uaXN0cDUyMQAAAAhuaXN0cDUyMQAAAIUEAct0XHogikL3SlZ7pbHdsAW2nosrkXuEWamcvJS1E2IdyZZON0sX9Or8zqicGUJghr0kckmgoVb1eFAa97nvBpmxALABaI534SWjRqriRP3q7evMlC3H7ayP/3+YP/jvy9K7mVtGxCvmA0SjHUs8G2z9lx2/y9RIsKrljSK9I5iYn2OrAAAApwAAABNlY2RzYS1zaGEyLW5pc3RwNTIxAAAAjAAAAEIBKrlx8rOQhQIJRUiHdt/TyabF2ad/BnxniWjAv4NfiDTZddRr9psQfve1pJh4Yc4M8jAzBrdRZngpOjO3MVY7jREAAABCAP2S/vcdnrYN8zs8YfjsIR5Tyd0WGj8NKVSVycWDwZypeztsthRC381xMFuKCOw1ty2fmb7BAqhvcKsq6Er+icz2 a comment",
        "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBAHLdFx6IIpC90pWe6Wx3bAFtp6LK5F7hFmpnLyUtRNiHcmWTjdLF/Tq/M6onBlCYIa9JHJJoKFW9XhQGve57waZsQCwAWiOd+Elo0aq4kT96u3rzJQtx+2sj/9/mD/478vSu5lbRsQr5gNEox1LPBts/Zcdv8vUSLCq5Y0ivSOYmJ9jqw==",
    ),
    (
        "ssh-ed25519",
        "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tAAAAIDkWnqoqsHXEQ8KziZeTcIlZN00sOKkxbrEyuzqDzDG0AAAAIKobTG0ZWlhZHA50MZ57nnZK5mYvmn6v6d/pur1IBmxcAAAAAAAAAAcAAAACAAAACmlkIGVkMjU1MTkAAAAeAAAAEWhvc3QxLmV4YW1wbGUub3JnAAAABW90aGVyAAAAAGd0hYAAAAAAekMrgAAAAAAAAAAAAAAAAAAAADMAAAALc3NoLWVkMjU1MTkAAAAgbTMQUcgKksAD2+fGD2xqlGRV0NCeJf0j1UgcNunnOAYAAABTAAAAC3NzaC1lZDI1NTE5AAAAQMiga+rY6WDrLCLb+EvkFit3R8eO7QnleG/ixvoiOH5XVuuArvZ8/M7LW9J8NLWMYp4EaGJMVgljVNitpoZA0gE= a comment",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG0zEFHICpLAA9vnxg9sapRkVdDQniX9I9VIHDbp5zgG",
    ),
];

/// Signed with ssh-rsa.
const SHA1: &str = "ssh-rsa-cert-v01@openssh.com AAAAHHNzaC1yc2EtY2VydC12MDFAb3BlbnNzaC5jb20AAAAgROcHU6XDTg/6v75/E7H6HeZOewKG1QUgiwTgkL9+W5AAAAADAQABAAABAQC6AJ1jc2nkq6pz9owHt4kuWAe1kfs+hnh4cGanhzEAuvQM+y5FRtjggZVGUlB9ZirRdfCMRQs1bl96kj2roNUfZwBevFvC9T412InK0qgxP7GDFwKYQZIYWsgGE3tygcjvnEhmQj2Y42+lJoi4avxqDDTVZ2JYDJRaZOJcxAbSHS85nU85XMLckNR8pMxMgZW8xPiP5NzeSayzgCa7iuGLLjZd4ZJLRHvykkBQkhltAEEUz4H+e3tmui+ZNrVNNw98+0+Zktm2GuL7H76TBE/hTN+JteMgx2sEL/nMMIEIAo+7mn+TiC1jBMTohIFvecAHaCHbuA7CETBm6KL2vNMRAAAAAAAAAAEAAAACAAAAA29sZAAAAAkAAAAFaG9zdDEAAAAAAAAAAP//////////AAAAAAAAAAAAAAAAAAABlwAAAAdzc2gtcnNhAAAAAwEAAQAAAYEArvY3TgH/iUmoJbuDzDcGyd7vKKlsGkK08UP1ofbT2s3Q4c0v0eHr1p/F4WXT8B+q2rgs0RXxO83jJgT4laovNkgGL5lCsXsNfFajwmElXbj/o4AnuhjH45QViodX4hIqQlU6GYodKSutgl/QHgtc60zljeMSk5oZ48/l2OqNiwK2arnb8k2W+jc7ix+0hAT6apGYFbjB4hQtudOVOo5f9qPY1K2PMhlwhcocGOS5Zxrs+bPg8yv1IPo5A9TtQY3Xq3U9welaOEcGS4yRoyOaZWKen0N5eRQ9o4vNvB1eqZaFklqYvCFyCRTJk80OmTt5uaB6PNOxKLm4izQ+X7lk0j7BOCbhzr3ttiQGfymmhpnyDi0RyKvtZxQ0ueTapy3aVCbR7oN4jvXTlYxQazMkOOZXJW9vCOOs/hKjNIcU27pTUZtCBz/AbeAju190d7WtaIsf5AJDhJtmKztcJsLh8qOkboP7C18Gen7QB/LFGlY5qEtNuI+LwOa/fGDkNEq3AAABjwAAAAdzc2gtcnNhAAABgJSbZI6Y0JzbyOrQv8U8oVwUACvDcw7i9hVhlr7fErebYNtmszIKvARi1Sxjbmk7PDcg1ocG5CajlW9YD65xGv0CE+dFpzXIioiTo1kj2TXft6D1lBWgRd/xltcQCcU/tOgcVHqsL8MoOXJ79X51vVsnUVV2YQMa6nbIbxgRzWNbrEKoQqiM+SrB22WI+RhvRui9wDtHZC/EY+Toi04q/H2BPYknQwOB2mUVXoUP+31UGZ3vM2ZUFTsiwFgPOIT6QEpwSEfEBJWt1mvDeKWdsC7VUojZIf8zNMBj9MISvOMmKrYVJJECs9YmRc/wQvlPlPyyt9kdrEASCHX/dhEeYarIHlDVM73Hw3Uq2/4QOcjR2xx4859kW8NPE6ByY6XIpHd8U//JY6MHqUJM2hSe7c5DUc4Wz5U2eGwr0yEae1heaHaHYCbWMIFznpPz1gb92hRhcbJJhi57NJobBZeRdo5iiE9e8ck2IszpuRr/bcxaK+ypUQCAy2enzxYU5qexNw==";

fn certificate(text: &str) -> Certificate {
    certificate_of_file(text).unwrap().unwrap()
}

#[test]
fn certificates_of_ssh_keygen_are_read_and_hold() {
    for (algorithm, text, authority) in MADE_BY_SSH_KEYGEN {
        let found = certificate(text);
        assert_eq!((found.key.algorithm(), found.cert_type, found.serial), (algorithm, HOST, 7));
        assert_eq!(found.principals, ["host1.example.org", "other"]);
        assert_eq!((found.valid_after, found.valid_before), (1_735_689_600, 2_051_222_400));
        assert!(found.key_id.starts_with("id ") && found.critical_options.is_empty());
        assert_eq!(found.authority, PublicKey::read_line(authority).unwrap().unwrap());
        found.check_signature().unwrap();
        assert_eq!(Certificate::read(found.blob()).unwrap(), found);
    }
}

#[test]
fn each_changed_byte_is_noticed() {
    for (algorithm, text, _) in MADE_BY_SSH_KEYGEN {
        let blob = certificate(text).blob().to_vec();
        for at in 0..blob.len() {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            let holds = Certificate::read(&changed).is_ok_and(|found| found.check_signature().is_ok());
            assert!(!holds, "{algorithm}: byte {at}");
            assert!(Certificate::read(&blob[..at]).is_err(), "{algorithm}: cut at {at}");
        }
        let longer = [&blob[..], &[0]].concat();
        assert_eq!(Certificate::read(&longer), Err(Malformed::Trailing("certificate")));
    }
}

#[test]
fn a_certificate_that_was_signed_with_sha1_is_refused_by_name() {
    assert_eq!(certificate(SHA1).check_signature(), Err(NotSigned::Sha1));
}

#[test]
fn keys_are_found_in_lines() {
    let (_, text, authority) = MADE_BY_SSH_KEYGEN[4];
    let key = PublicKey::read_line(authority).unwrap().unwrap();
    for line in [
        format!("{authority} a comment"),
        format!("  {authority}\r\n"),
        format!("# comment\n\n{authority}"),
        format!("cert-authority,no-pty {authority} ca"),
    ] {
        assert_eq!(PublicKey::read_line(&line), Some(Ok(key.clone())), "{line}");
    }
    for line in ["", "# only a comment", "bad authority", "ssh-ed25519 AAAA"] {
        assert_eq!(PublicKey::read_line(line), None, "{line}");
    }
    assert!(
        matches!(PublicKey::read_line(text), Some(Err(Malformed::Algorithm(_)))),
        "a certificate is no key"
    );
    let mut of_another_kind = Vec::new();
    push_string(&mut of_another_kind, b"ssh-dss");
    assert!(
        matches!(PublicKey::read(&of_another_kind), Err(Malformed::Algorithm(name)) if name == "ssh-dss")
    );
    let plain = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &[7; 32]].concat();
    assert_eq!(Certificate::read(&plain), Err(Malformed::NotACertificate));
}

#[test]
fn weak_rsa_keys_are_refused() {
    let key = |e: &[u8], n: &[u8]| {
        let mut blob = Vec::new();
        push_string(&mut blob, b"ssh-rsa");
        push_magnitude(&mut blob, e);
        push_magnitude(&mut blob, n);
        PublicKey::read(&blob)
    };
    assert!(key(&[1, 0, 1], &[0xff; 256]).is_ok());
    assert!(key(&[3], &[0xff; 128]).is_ok());
    assert_eq!(key(&[1, 0, 1], &[0xff; 127]), Err(Malformed::RsaSize(1016)));
    assert_eq!(key(&[1, 0, 1], &[0xff; 1025]), Err(Malformed::RsaSize(8200)));
    for e in [&[][..], &[1], &[2], &[4], &[1, 0, 0], &[1, 0, 0, 1]] {
        assert_eq!(key(e, &[0xff; 256]), Err(Malformed::Number("exponent")), "{e:?}");
    }
}

#[test]
fn signatures_must_be_of_the_keys_kind() {
    for (algorithm, text, _) in MADE_BY_SSH_KEYGEN {
        let key = certificate(text).key;
        for format in ["", "ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-256", "ssh-rsa", "ssh-dss"] {
            let signature = Signature { format: format.to_owned(), blob: vec![1; 64] };
            assert!(key.verify(b"message", &signature).is_err(), "{algorithm} {format}");
        }
    }
}
