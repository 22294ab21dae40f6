"""Invented names, put together from syllables."""

from __future__ import annotations

from gentrie.datasets._random import Stream
from gentrie.datasets._words import words

_STARTS = words(
    """Al Am An Ar As Au Ba Bal Bar Be Bel Ber Bo Bor Bra Bri Bro Bru Cal Cam Car Cas Cel Cha Cla Co Col Cor
    Cra Cy Da Dal Dan Dar De Del Der Do Dor Dra Dre Dru Du Ed El Em En Er Es Ev Fa Fal Fan Far Fe Fen Fer
    Fi Fin Flo For Fre Ga Gal Gar Ge Gil Gla Glo Gor Gra Gre Gri Gro Gu Ha Hal Har Hel Her Hol Hor Hu Il In
    Ir Is Ja Jar Jo Jor Ka Kal Kar Ke Kel Ker Ki Kor Kra Kry La Lan Lar Le Len Li Lo Lor Lu Ma Mal Man Mar
    Mel Mer Mi Mil Mo Mon Mor Mu My Na Nar Ne Nel Ni No Nor Ny O Ol Or Os Pa Pal Par Pe Pel Per Pi Po Por
    Pra Pri Pro Qua Qui Ra Ral Ran Re Ren Ri Ro Ron Ros Ru Sa Sal San Sar Sel Ser Sha Shi Si Sil So Sol Sor
    Sta Ste Sto Stra Su Syl Ta Tal Tan Tar Te Tel Ter Tha The Tho Ti To Tor Tra Tri Tro Tu Ul Ur Va Val Van
    Var Ve Vel Ver Vi Vin Vo Vor Wa Wal War Wel Wen Wil Wo Wy Xan Ya Yar Yo Za Zal Zan Zar Ze Zel Zi Zo Zor"""
)
_MIDDLES = words(
    """a ba be bi bo ca ce ci co da de di do e fa fi fo ga ge gi go i ka ki ko la le li lo ma me mi mo na ne
    ni no o pa pe pi po ra re ri ro sa se si so ta te ti to u va ve vi vo xa za zi"""
)
_ENDS = words(
    """ba bel ben bert by ck cker da dan dell den der din do dor dra dric fax fer field ford gan gard gate gon
    grim ham hart holm ka ker kin la lan land las ler ley lia lin lis lo lock lon lot mar mas mere mir mon
    mont mus na nan nard ner nia nis no nor nos ny phy ra ran rel ren rin ris rn ro ron ros roth ry san sen
    shire son stan ster sten ston ta tan ter thas thea thus tia tin ton tor tran tris tus van var ven vern
    via vin vis wall ward way wen wick win worth wyn xis ya zar zen zia zo zon"""
)
_HEADS = words(
    """Iron Star Shadow Storm Moon Sun Fire Frost Stone Black White Red Blue Green Gold Silver Wild Dark
    Bright Deep High Long Old Night Day Dragon Wolf Raven Fox Bear Lion Eagle Sword Shield Blood Bone Steel
    Thunder Wind Rain Snow Sand Sea River Wood Rose Thorn Ash Oak Dawn Dusk Sky Cloud Earth Water Spell
    Soul Heart Dream Mind Ghost Spirit Clear Cold Fair Glen Grey Hay Hill King Lark Mill North South East
    West Rock Salt Spring Summer Winter"""
)
_TAILS = words(
    """forge heart fall born blade keep light fire storm ward guard wood field ford gate haven helm hold land
    line mark mere moor more port ridge rock run shade shire side song spire stone strike stead tide tower
    town vale wall watch water way wind wing works world wright bound break brook burn bury caster craft
    dale dust fang fell flow frost ground hammer head horn hunter king lock master rider walker weaver"""
)


def coin(stream: Stream) -> str:
    """Return an invented capitalised name of two or three syllables."""
    middle = stream.pick(_MIDDLES) if stream.chance(0.45) else ""
    return stream.pick(_STARTS) + middle + stream.pick(_ENDS)


def compound(stream: Stream) -> str:
    """Return a name made of two ordinary words."""
    return stream.pick(_HEADS) + stream.pick(_TAILS)
