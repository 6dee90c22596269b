"""PDFs written by hand: no package that reads them has had a part in them."""

ZEROS = f"<{'00' * 48}>"
AES = (
    f"/Encrypt << /Filter /Standard /V 5 /R 6 /Length 256 /P -1 /O {ZEROS} /U {ZEROS} "
    f"/OE <{'00' * 32}> /UE <{'00' * 32}> /Perms <{'00' * 16}> /StmF /StdCF /StrF /StdCF "
    "/CF << /StdCF << /CFM /AESV3 /AuthEvent /DocOpen /Length 32 >> >> >> /ID [<00> <00>]"
)
"""Of a trailer: that all is encrypted by AES-256."""


def make_pdf(*pages, trailer=""):
    """The bytes of a PDF of pages, each a list of lines in Helvetica without brackets in them."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, lines in enumerate(pages):
        shown = "".join(f"({line}) Tj 0 -14 Td\n" for line in lines)
        content = f"BT /F1 12 Tf 72 720 Td\n{shown}ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        ]
    made, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(made))
        made += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    made += (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\n"
    )
    return f"{made}startxref\n{made.index('xref')}\n%%EOF\n".encode()
