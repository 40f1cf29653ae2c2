"""Archives of a few networks."""

from analytic_problem import all_genotypes, analytic_score, small_space

from mmscale.cost import count
from mmscale.search import Archive, Entry
from mmscale.search.entry import key_of, make_header

FINGERPRINT = {'checkpoint': 'abc', 'evaluator': {'batch_size': 64, 'side': 'left'}}
KEY = key_of(make_header(FINGERPRINT).encode())


def make_entries(number):
    space = small_space()
    archs = [space.decode(genes) for genes in all_genotypes(space)[:number]]
    return [Entry(arch, count(arch), analytic_score(arch)) for arch in archs]


def fill(directory, entries, rank=0):
    with Archive(directory, FINGERPRINT, rank) as archive:
        for entry in entries:
            archive.append(entry)
    return archive.path
