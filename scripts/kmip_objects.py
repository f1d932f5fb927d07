"""Puts objects into the server of kmip.sh and takes them out, with its certificate `client`.

usage: DIR/python kmip_objects.py DIR register symmetric|password|seed|opaque HEX     (prints the identifier)
       DIR/python kmip_objects.py DIR destroy ID
"""

import sys
from pathlib import Path

from kmip import enums
from kmip.pie import client, objects

MAKE = {
    "symmetric": lambda secret: objects.SymmetricKey(
        enums.CryptographicAlgorithm.AES, 8 * len(secret), secret
    ),
    "password": lambda secret: objects.SecretData(secret, enums.SecretDataType.PASSWORD),
    "seed": lambda secret: objects.SecretData(secret, enums.SecretDataType.SEED),
    "opaque": lambda secret: objects.OpaqueObject(secret, enums.OpaqueDataType.NONE),
}


def main(directory, verb, *arguments):
    directory = Path(directory)
    # config_file: otherwise the client looks for one in the home directory and in system folders.
    connection = client.ProxyKmipClient(
        hostname="127.0.0.1",
        port=int((directory / "port").read_text()),
        cert=str(directory / "client.crt"),
        key=str(directory / "client.key"),
        ca=str(directory / "ca.crt"),
        ssl_version="PROTOCOL_TLSv1_2",
        config_file="/dev/null",
    )
    with connection as server:
        if verb == "register":
            kind, secret = arguments
            print(server.register(MAKE[kind](bytes.fromhex(secret))))
        elif verb == "destroy":
            server.destroy(*arguments)
        else:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
